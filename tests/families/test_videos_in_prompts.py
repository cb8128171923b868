"""Videos of one frame, and several videos in one prompt beside images."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, Family, Image, Video
from tests.support.mechanism import forward
from tests.support.more_families import MORE
from tests.support.oracle import check_batch
from vlmopt.pruning import EVS, FastVID, Selector, VidCom2

GRIDS = {**FAMILIES, **MORE}
SEVERAL = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "exaone4_5", "video_llama_3", "kimi_k25", "molmo2", "minicpmv4_6"]
METHODS: dict[str, Selector] = {
    "evs": EVS(keep_ratio=0.5),
    "dycoke": EVS(keep_ratio=0.5, reference="dycoke"),
    "vidcom2": VidCom2(keep_ratio=0.5),
    "fastvid": FastVID(keep_ratio=0.5, tower_layer=-1),
}
PRESENT = [name for name in SEVERAL if name in GRIDS]


def with_image(family: Family) -> list[Any]:
    """Molmo2 takes images or videos, not both in one call."""
    return [] if family.name == "molmo2" else [Image(0), 2]


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("name", PRESENT)
def test_several_videos_in_one_prompt(name: str, layer: int) -> None:
    family = GRIDS[name]
    rows: list[list[Any]] = [[4, Video(0), 3, *with_image(family), Video(1), 5], [2, Video(1), 6]]
    check_batch(family, family.inputs(rows), layer, "147")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_a_video_of_one_frame(name: str, method: Selector) -> None:
    """It is a still image: the budget is met, and what is there twice is not there for being new."""
    family = replace(FAMILIES[name], videos=((1, 8, 8), (3, 4, 4)))
    for rows in ([[4, Video(0), 5]], [[4, Video(0), 3, Video(1), 5]]):
        batch = family.inputs(rows)
        with vlmopt.optimized(copy.deepcopy(FAMILIES[name].build()), method) as model:
            logits = forward(model, batch)
            (sample,) = vlmopt.report(model).samples
            maps = vlmopt.report(model).maps(0)
        assert logits[batch.real].isfinite().all()
        assert sample["visual_tokens_kept"] == method.budget(sample["visual_tokens"])
        assert [m.grid[0] for m in maps if m.grid] == [1, 3][: len(maps)]
        assert torch.stack([m.kept.any() for m in maps]).all()
