"""Families beyond those of the whole grid: the oracle, and one selector of every kind in place of all of them."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import vlmopt
from tests.support.families import Family, Image, Video
from tests.support.mechanism import forward
from tests.support.more_families import MORE
from tests.support.oracle import RAGGED, check_batch
from tests.support.selectors import works_on
from tests.support.tiny import IMAGE
from vlmopt.families import family_of
from vlmopt.pruning import (
    EVS,
    DivPrune,
    FastV,
    PixelRedundancy,
    Resize,
    Selector,
    Uniform,
    VisionZip,
    VisPruner,
    ZeroOrder,
)

KINDS: dict[str, Selector] = {  # one for each thing that a selector reads or does
    "grid": Uniform(keep_ratio=0.3, positions="pospad"),
    "embeddings": DivPrune(keep_ratio=0.4),
    "row": FastV(keep_ratio=0.4, layer=2),
    "projector": ZeroOrder(keep_ratio=0.4),
    "tower": VisPruner(keep_ratio=0.4, tower_layer=-1),
    "merging": VisionZip(keep_ratio=0.4, tower_layer=-1, contextual=0.5),
    "pixels": PixelRedundancy(keep_ratio=0.4),
    "smaller": Resize(keep_ratio=0.4),
}
QUERIES = ("aria", "idefics2", "blip_2", "instructblip")  # tokens answer queries and lie on no grid
APART = {"kimi_k25": 1, "minicpmv4_6": 2, "minicpmv4_7": 2}  # frames averaged to one, or each an image of its own
FAMILIES = [pytest.param(family, id=family.name) for family in MORE.values()]


def cells() -> list[Any]:
    """Every kind on every family that has what it reads."""
    return [
        pytest.param(family, method, id=f"{family.name}-{kind}")
        for family in MORE.values()
        for kind, method in KINDS.items()
        if works_on(family_of(family.config()), method)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_may_end_in_an_image(family: Family) -> None:
    """Its last row predicts, and stays, though the selector would drop it."""
    batch = family.inputs([[5, Image(0)], [3, Image(1), Image(2)]])
    last = {(total - 1 + total % 3) % 10 for total in batch.total.tolist()}
    digits = "".join(map(str, sorted({1, 4, *last})))
    check_batch(family, batch, 0, digits)
    check_batch(family, batch, 2, digits)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_described(family: Family) -> None:
    """And its parts are where the description says."""
    described = family_of(family.config())
    assert described.described
    model = family.build()
    for path in (described.vision_tower, described.projector):
        assert model.get_submodule(path) is not None


@pytest.mark.parametrize(("family", "method"), cells())
def test_a_method_of_every_kind_keeps_its_promises(family: Family, method: Selector) -> None:
    """Budgets are exact, a second call says the same, and what is restored gives the bits of the model alone."""
    model, batch = copy.deepcopy(family.build()), family.inputs(RAGGED[:2])
    dense = forward(model, batch)
    vlmopt.optimize(model, method)
    logits, report = forward(model, batch), vlmopt.report(model)
    assert logits[batch.real].isfinite().all()
    for row, sample in enumerate(report.samples):
        assert sample["visual_tokens"] == int(batch.total[row])
        (stage,) = sample["stages"]
        budget = method.budget(sample["visual_tokens"])
        assert 0 < stage["after"] <= max(budget, len(sample["items"])) if method.adaptive else stage["after"] == budget
    assert torch.equal(forward(model, batch), logits)
    vlmopt.restore(model)
    assert torch.equal(forward(model, batch), dense)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_lie_on_grids(family: Family) -> None:
    """One span for every image or part of it, its patches on the grid it has; queries and the like lie on none."""
    batch = family.inputs(RAGGED[:1])
    with vlmopt.optimized(copy.deepcopy(family.build()), Uniform(keep_ratio=0.5)) as model:
        forward(model, batch)
        maps = vlmopt.report(model).maps(0)
    assert len(maps) == int(batch.span.max()) + 1
    for m in maps:
        if family.name in QUERIES:
            assert m.grid is None
        else:
            patches = (m.coords >= 0).all(1)
            t, h, w = m.grid
            assert int(patches.sum()) == t * h * w
            assert m.coords[patches].unique(dim=0).shape[0] == t * h * w


@pytest.mark.parametrize(
    "family", [pytest.param(f, id=f.name) for f in MORE.values() if f.videos and f.name not in APART]
)
def test_frames_of_a_video(family: Family) -> None:
    """EVS finds every frame, and keeps the first one whole."""
    batch = family.inputs([[4, Video(0), 5]])
    with vlmopt.optimized(copy.deepcopy(family.build()), EVS(keep_ratio=0.6)) as model:
        forward(model, batch)
        (m,) = vlmopt.report(model).maps(0)
    assert m.grid is not None
    assert m.grid[0] > 1
    assert bool(m.kept[m.coords[:, 0] == 0].all())


@pytest.mark.parametrize(("name", "count"), [pair for pair in APART.items() if pair[0] in MORE])
def test_frames_that_make_no_video(name: str, count: int) -> None:
    family = MORE[name]
    with vlmopt.optimized(copy.deepcopy(family.build()), EVS(keep_ratio=0.6)) as model:
        forward(model, family.inputs([[4, Video(0), 5]]))
        maps = vlmopt.report(model).maps(0)
    assert [m.grid[0] for m in maps if m.grid is not None] == [1] * count


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.skipif("blip_2" not in MORE, reason="family not in this release")
def test_a_caption_without_a_prompt(beams: int) -> None:
    """BLIP-2 makes the ids of such a call itself, inside `generate`."""
    family = MORE["blip_2"]
    model, pixels = copy.deepcopy(family.build()), family.inputs([[Image(0)]]).inputs["pixel_values"]
    ids = torch.tensor([[IMAGE] * 9 + [model.config.text_config.bos_token_id]])
    settings: dict[str, Any] = {"max_new_tokens": 4, "num_beams": beams, "do_sample": False}
    with vlmopt.optimized(model, DivPrune(keep_ratio=0.5)):
        alone, (sample,) = model.generate(pixels, **settings), vlmopt.report(model).samples[:1]
        given = model.generate(pixels, input_ids=ids, **settings)
    assert (sample["prompt_tokens"], sample["visual_tokens"], sample["visual_tokens_kept"]) == (10, 9, 5)
    assert torch.equal(alone, given)
    assert not torch.equal(model.generate(pixels, **settings), given)


@pytest.mark.skipif("qwen2_5_omni" not in MORE, reason="family not in this release")
def test_the_thinker_of_an_omni_model_is_found() -> None:
    family = MORE["qwen2_5_omni"]
    config = transformers.Qwen2_5OmniConfig(enable_audio_output=False)
    config.thinker_config = family.config()
    omni = transformers.Qwen2_5OmniForConditionalGeneration(config).eval()
    omni.thinker = copy.deepcopy(family.build())
    omni.speaker_map["Chelsie"], omni.talker = {}, SimpleNamespace(codec_pad_token=0)  # it names it even when silent
    batch, thinker = family.inputs([[5, Image(0), 7]]), copy.deepcopy(family.build())

    def answer() -> torch.Tensor:
        return omni.generate(**batch(), generation_mode="text", thinker_max_new_tokens=4, thinker_do_sample=False)

    before = answer()
    assert vlmopt.optimize(omni, DivPrune(keep_ratio=0.3)) is omni
    with vlmopt.optimized(thinker, DivPrune(keep_ratio=0.3)):
        assert torch.equal(answer(), thinker.generate(**batch(), max_new_tokens=4, do_sample=False))
    assert vlmopt.report(omni).samples[0]["visual_tokens_kept"] == 5
    assert torch.equal(
        vlmopt.restore(omni).generate(**batch(), generation_mode="text", thinker_max_new_tokens=4), before
    )
    omni.has_talker = True
    with pytest.warns(UserWarning, match="generation_mode='text'"):
        vlmopt.optimize(omni, "uniform-25")
