"""An object planted in an image is found at its pixels, through the processor of every layout."""

# ruff: noqa: C408

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image, ImageDraw
from torch import Tensor

from vlmopt.families import family_of
from vlmopt.families.patches import patch_cells, square_cells
from vlmopt.looking.areas import box_of, components
from vlmopt.looking.focus import CANVAS, enlarged
from vlmopt.looking.places import PLACES, canvas_for, paint, places, tokens_in
from vlmopt.reporting import VisualMap

Seen = tuple[Tensor, list[int], dict[str, Any]]  # brightness per token in prompt order, tokens per item, arguments
TOWER: dict[str, Any] = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION = [[384 * r, 384 * c] for r in range(1, 4) for c in range(1, 4)]


def bright(cells: Tensor) -> Tensor:
    """Mean brightness of tokens from their pixels [n, c, v]."""
    return cells.double().mean((1, 2))


def squares(config: Any, how: Any, image: Image.Image) -> Seen:
    """One square, or square tiles of InternVL."""
    pixels = how(images=[image], return_tensors="pt", **TILED.get(config.model_type, {}))["pixel_values"]
    values = bright(square_cells(pixels, config))
    return values, [len(values) // len(pixels)] * len(pixels), {}


def grid(config: Any, how: Any, image: Image.Image) -> Seen:
    """Merged patches of Qwen-VL."""
    inputs = how(images=[image], return_tensors="pt")
    values = bright(patch_cells(inputs["pixel_values"], config))
    return values, [len(values)], dict(image_grid_thw=inputs["image_grid_thw"])


def packed(config: Any, how: Any, image: Image.Image) -> Seen:
    """Overview and unpadded tiles, put together by the model's own code."""
    inputs = how(images=[image], return_tensors="pt")
    side = config.vision_config.image_size // config.vision_config.patch_size
    cut = SimpleNamespace(model_type="", vision_config=config.vision_config)
    cells = bright(square_cells(inputs["pixel_values"][0], cut)).view(-1, side * side, 1)
    model = next(getattr(hf, name) for name in (f"{type(config).__name__.removesuffix('Config')}Model",))
    how_packed = dict(image_newline=torch.zeros(1, dtype=cells.dtype), vision_feature_select_strategy="full")
    if config.model_type == "llava_onevision":
        del how_packed["vision_feature_select_strategy"]
        how_packed["vision_aspect_ratio"] = config.vision_aspect_ratio
    packer = SimpleNamespace(config=config)
    features, _ = model.pack_image_features(packer, [cells], inputs["image_sizes"], **how_packed)
    return features[0][:, 0], [len(features[0])], dict(image_sizes=inputs["image_sizes"])


def written(config: Any, how: Any, image: Image.Image) -> Seen:
    """Tiles of Idefics3, and the overview."""
    pixels = how(images=[image], return_tensors="pt")["pixel_values"][0]
    side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
    cut = pixels[..., : side * (pixels.shape[-1] // side), : side * (pixels.shape[-1] // side)]
    b, c, s, _ = cut.shape
    p = s // side
    cells = cut.view(b, c, side, p, side, p).permute(0, 2, 4, 1, 3, 5).reshape(b * side**2, c, p * p)
    return bright(cells), [b * side**2], {}


def clip(side: int) -> Any:
    return hf.CLIPVisionConfig(**TOWER, image_size=side, patch_size=14)


def siglip(side: int, patch: int = 14) -> Any:
    return hf.SiglipVisionConfig(**TOWER, image_size=side, patch_size=patch)


CROP = dict(size=dict(shortest_edge=336), crop_size=dict(height=336, width=336))
TILED = {"internvl": dict(crop_to_patches=True)}
CASES: dict[str, tuple[Callable[[], Any], str, dict[str, Any], Callable[..., Seen]]] = {
    "square": (
        lambda: hf.PaliGemmaConfig(vision_config=siglip(224)),
        "Siglip",
        dict(size=dict(height=224, width=224)),
        squares,
    ),
    "pooled square": (
        lambda: hf.Gemma3Config(vision_config=siglip(896)),
        "Gemma3",
        dict(size=dict(height=896, width=896)),
        squares,
    ),
    "centre crop": (lambda: hf.LlavaConfig(vision_config=clip(336)), "CLIP", CROP, squares),
    "padded": (
        lambda: hf.LlavaConfig(vision_config=clip(336)),
        "Llava",
        dict(CROP, do_pad=True),
        squares,
    ),
    "Qwen grid": (lambda: hf.AutoConfig.for_model("qwen2_5_vl"), "Qwen2VL", {}, grid),
    "LLaVA-NeXT tiles": (
        lambda: hf.LlavaNextConfig(vision_config=clip(336), image_grid_pinpoints=NEXT),
        "LlavaNext",
        dict(CROP, image_grid_pinpoints=NEXT),
        packed,
    ),
    "OneVision tiles": (
        lambda: hf.LlavaOnevisionConfig(
            vision_config=siglip(384), image_grid_pinpoints=ONEVISION, vision_aspect_ratio="anyres_max_4"
        ),
        "LlavaOnevision",
        dict(image_grid_pinpoints=ONEVISION, size=dict(height=384, width=384)),
        packed,
    ),
    "InternVL tiles": (lambda: hf.InternVLConfig(), "GotOcr2", dict(size=dict(height=448, width=448)), squares),
    "Idefics3 tiles": (
        lambda: hf.Idefics3Config(vision_config=dict(image_size=364, patch_size=14)),
        "Idefics3",
        {},
        written,
    ),
}
SIZES = ((640, 480), (480, 640), (500, 500), (900, 400))


def image_processor(kind: str, settings: dict[str, Any]) -> Any:
    """The processor that works with Pillow; older releases name it without the ending."""
    found = getattr(hf, f"{kind}ImageProcessorPil", None) or getattr(hf, f"{kind}ImageProcessor")
    return found(**settings)


def planted(size: tuple[int, int]) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A white rectangle on black, off the middle, inside of what a centre crop leaves."""
    short, middle = min(size), (size[0] / 2, size[1] / 2)
    box = [round(m + share * short) for m, share in zip(middle * 2, (-0.1, -0.4, 0.35, -0.05), strict=True)]
    image = Image.new("RGB", size)
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="white")
    return image, (box[0], box[1], box[2], box[3])


def maps_of(config: Any, lengths: list[int], arguments: dict[str, Any]) -> list[VisualMap]:
    pieces = family_of(config).layout("image", lengths, arguments, config)
    maps = []
    for number, piece in enumerate(pieces):
        every, none = torch.ones(piece.length, dtype=torch.bool), torch.zeros(piece.length, dtype=torch.bool)
        into = torch.full((piece.length,), -1)
        maps.append(VisualMap(number, piece.kind, piece.grid, piece.coords, every, none, none, into, None))
    return maps


def overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    inner = [max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return inner[0] * inner[1] / (sum(areas) - inner[0] * inner[1])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_planted_object_is_boxed(name: str, size: tuple[int, int]) -> None:
    config, kind, settings, seen = CASES[name][0](), *CASES[name][1:]
    how = image_processor(kind, settings)
    image, truth = planted(size)
    values, lengths, arguments = seen(config, how, image)
    maps = maps_of(config, lengths, arguments)
    assert sum(len(m.kept) for m in maps) == len(values)
    model, processor = SimpleNamespace(config=config), SimpleNamespace(image_processor=how)
    where = places(maps, size, model, processor)
    values = (values - values.min()).float()
    heat = paint(values, maps, where, size, canvas_for(size, CANVAS))
    covered = (~np.isnan(heat)).sum()
    share = (truth[2] - truth[0]) * (truth[3] - truth[1]) / covered
    mask = enlarged(components(heat, min(1.25 * share, 1.0), 1), size)
    box = box_of(mask)
    assert box is not None
    assert overlap(box, truth) >= 0.5
    middle = ((truth[0] + truth[2]) // 2, (truth[1] + truth[3]) // 2)
    assert box[0] < middle[0] < box[2]
    assert box[1] < middle[1] < box[3]
    slack = max(size) / 24  # a cell or so
    assert box[0] <= truth[0] + slack
    assert box[1] <= truth[1] + slack
    assert box[2] >= truth[2] - slack
    assert box[3] >= truth[3] - slack
    tokens = tokens_in(mask, maps, where, size)
    patch = torch.cat([(m.coords >= 0).all(1) for m in maps])
    assert values[tokens].mean() > 3 * values[~tokens & patch].mean()


@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize("column", [0, 5])
def test_row_and_column_are_not_mixed_up(row: int, column: int) -> None:
    coords = torch.ones(1, 4, 6, dtype=torch.bool).nonzero()
    every, none = torch.ones(24, dtype=torch.bool), torch.zeros(24, dtype=torch.bool)
    one = VisualMap(0, "image", (1, 4, 6), coords, every, none, none, torch.full((24,), -1), None)
    values = ((coords[:, 1] == row) & (coords[:, 2] == column)).float()
    heat = paint(values, [one], [(0, 0, 120, 40)], (120, 40), (120, 40))
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert (y // 10, x // 20) == (row, column)


def test_a_crop_leaves_pixels_without_a_value() -> None:
    config = CASES["centre crop"][0]()
    how = image_processor("CLIP", CROP)
    maps = maps_of(config, [576], {})
    model, processor = SimpleNamespace(config=config), SimpleNamespace(image_processor=how)
    where = places(maps, (900, 400), model, processor)
    heat = paint(torch.ones(576), maps, where, (900, 400), (900, 400))
    assert np.isnan(heat[:, :250]).all()
    assert np.isnan(heat[:, 650:]).all()
    assert (heat[:, 250:650] == 1).all()


def test_a_model_of_which_nobody_knows_is_refused() -> None:
    config = SimpleNamespace(model_type="idefics2")
    with pytest.raises(ValueError, match=r"idefics2.*known: .*qwen2_5_vl"):
        places([], (10, 10), SimpleNamespace(config=config), None)


def test_tiles_that_do_not_add_up_are_refused() -> None:
    images = SimpleNamespace(size={"height": 448}, min_patches=1, max_patches=12)
    with pytest.raises(ValueError, match="where they lie is not known"):
        PLACES["internvl"](4, (448, 896), None, images)
