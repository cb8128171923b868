"""The rules that tell how many visual tokens an image becomes, against every family's own processor."""

# ruff: noqa: C408

from __future__ import annotations

import functools
from typing import Any

import pytest
import transformers as hf

from tests.support import stock_processors as stock
from tests.support.more_families import MORE
from vlmopt.estimation.tiles import aspect_tiles, best_resolution
from vlmopt.estimation.tokens import RULES, image_tokens
from vlmopt.families import families

SIZES = (
    (800, 1280), (336, 336), (1080, 1920), (97, 1500), (1500, 97), (480, 640), (30, 40), (2000, 1999), (765, 1123),
    (28, 28), (1, 3), (513, 512), (2160, 3840),
)  # fmt: skip
TOWER: dict[str, Any] = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION = [[384 * r, 384 * c] for r in range(1, 7) for c in range(1, 7)]
QWEN = dict(shortest_edge=3136, longest_edge=12845056)


def clip(side: int) -> Any:
    return hf.CLIPVisionConfig(**TOWER, image_size=side, patch_size=14)


def siglip(side: int) -> Any:
    return hf.SiglipVisionConfig(**TOWER, image_size=side, patch_size=14)


def qwen(name: str, patch: int, size: dict[str, int]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    return hf.AutoConfig.for_model(name), dict(patch_size=patch, size=size), {}


LLAVA = dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1)
CASES: dict[str, Any] = {
    "qwen2_vl": lambda: qwen("qwen2_vl", 14, QWEN),
    "qwen2_5_vl": lambda: qwen("qwen2_5_vl", 14, dict(QWEN, longest_edge=1003520)),
    "qwen3_vl": lambda: qwen("qwen3_vl", 16, dict(shortest_edge=65536, longest_edge=16777216)),
    "llava": lambda: (
        hf.LlavaConfig(vision_config=clip(336)),
        dict(size=dict(shortest_edge=336), crop_size=dict(height=336, width=336)),
        LLAVA,
    ),
    "llava_next": lambda: (
        hf.LlavaNextConfig(vision_config=clip(336), image_grid_pinpoints=NEXT),
        dict(
            image_grid_pinpoints=NEXT, size=dict(shortest_edge=336), crop_size=dict(height=336, width=336)
        ),
        LLAVA,
    ),
    "llava_onevision": lambda: (
        hf.LlavaOnevisionConfig(vision_config=siglip(384), image_grid_pinpoints=ONEVISION),
        dict(image_grid_pinpoints=ONEVISION, size=dict(height=384, width=384)),
        dict(num_image_tokens=729, vision_feature_select_strategy="full"),
    ),
    "internvl": lambda: (hf.InternVLConfig(), dict(size=dict(height=448, width=448)), dict(image_seq_length=256)),
    "idefics3": lambda: (
        hf.Idefics3Config(vision_config=dict(image_size=364, patch_size=14)), {}, dict(image_seq_len=169)
    ),
    "smolvlm": lambda: (
        hf.SmolVLMConfig(vision_config=dict(image_size=512, patch_size=16), scale_factor=4),
        dict(size=dict(longest_edge=2048), max_image_size=dict(longest_edge=512)),
        dict(image_seq_len=64),
    ),
    "gemma3": lambda: (hf.Gemma3Config(vision_config=siglip(896)), dict(size=dict(height=896, width=896)), {}),
    "paligemma": lambda: (
        hf.PaliGemmaConfig(vision_config=siglip(224)),
        dict(size=dict(height=224, width=224), image_seq_length=256),
        {},
    ),
}  # fmt: skip
HERE = [name for name in CASES if getattr(hf, stock.NEEDED[name], None) is not None]


@functools.cache
def made(name: str) -> tuple[Any, dict[str, Any], Any]:
    config, settings, own = CASES[name]()
    return config, settings, stock.processor(config, settings, **own)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", HERE)
def test_tokens_of_one_image(name: str, size: tuple[int, int]) -> None:
    """As many placeholders as the stock processor writes, or refused where it refuses."""
    config, settings, processor = made(name)
    try:
        wanted = stock.counted(processor, size)
    except ValueError:
        with pytest.raises(ValueError, match="refuses"):
            image_tokens(size, config, settings)
        return
    assert image_tokens(size, config, settings).tokens == wanted


@pytest.mark.parametrize("name", HERE)
def test_tokens_of_two_images(name: str) -> None:
    config, settings, processor = made(name)
    sizes = (800, 1280), (480, 640)
    assert sum(image_tokens(s, config, settings, alone=False).tokens for s in sizes) == stock.counted(processor, *sizes)


@pytest.mark.parametrize("name", ["idefics3", "smolvlm", "internvl"])
def test_text_that_the_processor_writes_around_tiles(name: str) -> None:
    """Everything but the question."""
    config, settings, processor = made(name)
    question = len(processor.tokenizer(stock.prompt(0), add_special_tokens=False)["input_ids"])
    for size in ((800, 1280), (364, 364), (97, 1500)):
        found = image_tokens(size, config, settings)
        assert found.tokens + found.framing + question == stock.length(processor, size)


@pytest.mark.skipif(not hasattr(hf, "Gemma4ImageProcessorPil"), reason="this release has no Gemma4")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tokens_of_gemma4(size: tuple[int, int]) -> None:
    config = hf.Gemma4Config(vision_config=hf.Gemma4VisionConfig())
    out = stock.encoded(hf.Gemma4ImageProcessorPil(), size)
    found = image_tokens(size, config, {})
    assert found.tokens == int(out["num_soft_tokens_per_image"][0])
    assert found.patches == (out["pixel_values"].shape[1],)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tokens_of_mistral3(size: tuple[int, int]) -> None:
    """Its processor, which needs torchvision, hands on patch_size * merge and writes h/28 rows of w/28 tokens."""
    config = hf.Mistral3Config(spatial_merge_size=2)
    images = hf.PixtralImageProcessorPil(patch_size=dict(height=28, width=28), size=dict(longest_edge=1540))
    out = stock.encoded(images, size)
    h, w = (side // 28 for side in out["image_sizes"][0].tolist())
    found = image_tokens(size, config, {})
    assert (found.tokens, found.framing) == (h * w, h)
    assert found.grids == ((2 * h, 2 * w),)


def test_every_family_has_a_rule_or_is_refused_by_name() -> None:
    missing = {kind for name, family in families().items() if name in MORE for kind in family.model_types}
    missing -= RULES.keys()
    assert {kind for family in families().values() for kind in family.model_types} - RULES.keys() <= missing
    for kind in sorted(missing & set(hf.CONFIG_MAPPING.keys())):
        with pytest.raises(ValueError, match=f"'{kind}' has no rule that tells how many visual tokens"):
            image_tokens((9, 9), hf.AutoConfig.for_model(kind), {})


def test_refusals() -> None:
    config = hf.AutoConfig.for_model("qwen2_vl")
    with pytest.raises(ValueError, match="at least 1 pixel"):
        image_tokens((0, 10), config, {})
    with pytest.raises(ValueError, match="'bert' has no rule"):
        image_tokens((9, 9), hf.BertConfig(), {})


def test_ties_between_grids() -> None:
    """Of equal aspects the larger grid, until it covers twice the image's area."""
    assert aspect_tiles((448, 448), 448, 1, 12) == (1, 1)
    assert aspect_tiles((700, 700), 448, 1, 12) == (2, 2)
    assert best_resolution((100, 100), [[200, 200], [100, 200], [100, 100]]) == (100, 100)
