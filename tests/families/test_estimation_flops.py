"""Counted FLOPs equal those that torch counts on tiny models of every family, to 1 %."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.support.families import FAMILIES, Batch, Family, Image
from vlmopt.estimation import work
from vlmopt.estimation.tokens import ImageTokens
from vlmopt.estimation.weights import Parts, on_meta, parts_of
from vlmopt.families import family_of
from vlmopt.runtime.structure import part, structure_of

CLOSE = 0.01
# Left out, because it is next to nothing in a tower of real size: patches pooled by a product, and a table of positions
# resized by one.
LEFT_OUT = {"gemma4": 2 * 64 * 16 * 32, "lfm2_vl": 2 * 64 * 64 * 32}


def grids(family: Family, inputs: Batch) -> tuple[tuple[int, int], ...]:
    """Patches of every item that the tower is handed."""
    vision = family.config().vision_config
    if "image_grid_thw" in inputs.inputs:
        return tuple((h, w) for _, h, w in inputs.inputs["image_grid_thw"].tolist())
    pixels = inputs.inputs["pixel_values"]
    if pixels.ndim == 3:  # already cut into patches
        side = int(pixels.shape[1] ** 0.5)
        return ((side, side),) * len(pixels)
    if family.name == "fast_vlm":
        return (tuple(pixels.shape[-2:]),) * len(pixels)  # type: ignore[return-value]
    if "image_sizes" in inputs.inputs and family.name == "mistral3":
        return tuple((h // 14, w // 14) for h, w in inputs.inputs["image_sizes"].tolist())
    patch = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
    h, w = (side // patch for side in pixels.shape[-2:])
    return ((h, w),) * pixels.flatten(0, -4).shape[0]


def projected(family: Family, inputs: Batch, count: int) -> int:
    """Rows that leave the projector: those of padded tiles are cut off behind it."""
    if family.name in ("llava_next", "llava_onevision"):
        side = {"llava_next": 4, "llava_onevision": 9}[family.name]
        return side * count
    return int(inputs.total.sum())


@pytest.fixture(scope="module", params=list(FAMILIES))
def case(request: pytest.FixtureRequest) -> tuple[Family, Any, Batch, Parts, dict[str, Any]]:
    """A family, its model with explicit attention (torch counts no fused one on a CPU), and what torch counted."""
    family = FAMILIES[request.param]
    inputs = family.inputs([[40, Image(0), 30]])
    model = copy.deepcopy(family.build("eager"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out = model(**inputs(), use_cache=True, logits_to_keep=1)
    prompt = counter.get_flop_counts()
    positions = {"position_ids": torch.full((3, 1, 1), 90)} if family.rope == "mrope" else {}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.tensor([[7]]), past_key_values=out.past_key_values, **positions)
    return (
        family,
        model,
        inputs,
        parts_of(on_meta(family.config())),
        {"prompt": prompt, "step": counter.get_flop_counts()},
    )


def found(counts: dict[str, Any], model: Any, module: Any) -> int:
    name = next(name for name, m in model.named_modules() if m is module)
    return sum(counts.get(f"{type(model).__name__}.{name}", {}).values())


def test_the_tower_and_its_projector(case: Any) -> None:
    family, model, inputs, parts, counts = case
    described, outer = family_of(model.config), structure_of(model).outer
    modules = [part(outer, described.vision_tower)]
    if "visual.merger" not in described.projector:
        modules.append(part(outer, described.projector))
    wanted = sum(found(counts["prompt"], model, module) for module in modules)
    items = grids(family, inputs)
    image = ImageTokens(items, projected(family, inputs, len(items)), int(inputs.total.sum()))
    mine = work.vision(parts.tower, [image]).flops + work.projection(parts, [image]).flops
    assert mine == pytest.approx(wanted - LEFT_OUT.get(family.name, 0), rel=CLOSE)


def test_every_layer_of_the_prompt(case: Any) -> None:
    _, model, inputs, parts, counts = case
    n = inputs.ids.shape[1]
    mine = work.prefill(parts, [n] * len(parts.layers))
    for layer, own in zip(structure_of(model).layers, mine[1:-1], strict=True):
        assert own.flops == pytest.approx(found(counts["prompt"], model, layer), rel=CLOSE)


def test_a_prompt_as_a_whole(case: Any) -> None:
    """With logits and what the decoder does beside its layers."""
    family, _, inputs, parts, counts = case
    items = grids(family, inputs)
    image = ImageTokens(items, projected(family, inputs, len(items)), int(inputs.total.sum()))
    mine = [work.vision(parts.tower, [image]), work.projection(parts, [image])]
    mine += work.prefill(parts, [inputs.ids.shape[1]] * len(parts.layers))
    assert work.total(mine).flops == pytest.approx(sum(counts["prompt"]["Global"].values()), rel=CLOSE)


def test_a_generated_token(case: Any) -> None:
    _, _, inputs, parts, counts = case
    mine = work.total(work.decode(parts, [inputs.ids.shape[1]] * len(parts.layers)))
    assert mine.flops == pytest.approx(sum(counts["step"]["Global"].values()), rel=CLOSE)


def test_parameters_are_those_of_the_model(case: Any) -> None:
    _, model, _, parts, _ = case
    assert parts.parameters == sum(p.numel() for p in model.parameters())
