"""What every selector on the encoder's side of the LLM promises: exact budgets, images apart, half precision."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.support.embedded import keep_of, visual
from vlmopt.pruning import (
    DART,
    FastVID,
    HiPrune,
    MMTok,
    Scope,
    TextEmbeds,
    VidCom2,
    VisionAttention,
    VisionKeys,
    VisualEmbeds,
)
from vlmopt.pruning.cd_pruner import CDPruner
from vlmopt.pruning.cen_prune import CenPrune
from vlmopt.pruning.div_prune import DivPrune
from vlmopt.pruning.evs import EVS
from vlmopt.pruning.holov import HoloV
from vlmopt.pruning.vis_pruner import VisPruner
from vlmopt.pruning.vision_zip import VisionZip

GRIDS = {
    "one": [(1, 6, 6)],
    "row": [(1, 1, 9)],
    "two": [(1, 5, 6), (1, 2, 3)],
    "many": [(1, 1, 1), (1, 5, 4), (1, 1, 2)],
    "video": [(5, 3, 4)],
    "video_and_image": [(3, 2, 4), (1, 5, 5)],
}
SETTINGS = {
    "div_prune": DivPrune(keep_ratio=0.4),
    "cd_pruner": CDPruner(keep_ratio=0.4),
    "cd_pruner-none": CDPruner(keep_tokens=3, relevance="none"),
    "cen_prune": CenPrune(keep_ratio=0.4),
    "cen_prune-dpp": CenPrune(keep_tokens=3, base="dpp", features="projector_input"),
    "vision_zip": VisionZip(keep_ratio=0.4),
    "vision_zip-merged": VisionZip(keep_tokens=4, contextual=0.6, paper_compat=True, tower_layer=0),
    "evs": EVS(keep_ratio=0.4),
    "evs-few": EVS(keep_tokens=3, allocation="proportional"),
    "vis_pruner": VisPruner(keep_ratio=0.4),
    "vis_pruner-diverse": VisPruner(keep_tokens=3, important=0.0),
    "vis_pruner-released": VisPruner(keep_ratio=0.4, important=0.2, paper_compat=True),
    "holov": HoloV(keep_ratio=0.4),
    "dart": DART(keep_ratio=0.4),
    "dart-question": DART(keep_tokens=3, pivots_image=0),
    "scope": Scope(keep_ratio=0.4),
    "mmtok": MMTok(keep_ratio=0.4),
    "mmtok-none": MMTok(keep_tokens=3, relevance="none", features="embeds"),
    "vidcom2": VidCom2(keep_ratio=0.4),
    "fastvid": FastVID(keep_ratio=0.4),
    "hiprune": HiPrune(keep_ratio=0.4, object_layer=0),
    "evs-dycoke": EVS(keep_ratio=0.4, reference="dycoke"),
    "holov-16": HoloV(keep_tokens=3, crops=16, paper_compat=True),
}


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("method", SETTINGS.values(), ids=SETTINGS)
def test_budgets_are_exact_and_choices_repeatable(method, grids):
    tokens = visual(grids)
    assert method.needs <= tokens.signals.keys()
    chosen = method.select(tokens)
    assert chosen.keep.dtype == torch.long
    assert (chosen.keep.diff() > 0).all()
    assert len(chosen.keep) == min(method.budget(len(tokens)), len(tokens))
    assert chosen.keep[0] >= 0
    assert chosen.keep[-1] < len(tokens)
    assert torch.equal(chosen.keep, method.select(tokens).keep)
    if chosen.scores is not None:
        assert chosen.scores.dtype == torch.float32
        assert chosen.scores.shape == (len(tokens),)


@pytest.mark.parametrize("method", SETTINGS.values(), ids=SETTINGS)
def test_every_count_from_one_to_all(method):
    tokens = visual([(2, 3, 4)])
    for k in range(1, 25):
        chosen = method.pick(tokens, k)
        assert len(chosen.keep) == k
        assert (chosen.keep.diff() > 0).all()
    assert keep_of(dataclasses.replace(method, keep_ratio=1.0, keep_tokens=None), tokens) == list(range(24))


@pytest.mark.parametrize("method", SETTINGS.values(), ids=SETTINGS)
def test_an_image_is_chosen_from_as_if_it_were_alone(method):
    method = dataclasses.replace(method, keep_ratio=0.5, keep_tokens=None, allocation="proportional")
    tokens = visual([(1, 4, 4), (2, 3, 4)])
    first, second = (tokens.subset((tokens.item == i).nonzero()[:, 0]) for i in (0, 1))
    alone = [method.pick(first, 8).keep, method.pick(second, 12).keep + 16]
    assert torch.equal(method.select(tokens).keep, torch.cat(alone))


@pytest.mark.parametrize("method", SETTINGS.values(), ids=SETTINGS)
def test_half_precision_gives_finite_scores(method):
    tokens = visual([(2, 4, 4)])
    half = {s: v.bfloat16() for s, v in tokens.signals.items() if isinstance(s, (VisualEmbeds, TextEmbeds, VisionKeys))}
    chosen = method.select(dataclasses.replace(tokens, signals={**tokens.signals, **half}))
    assert len(chosen.keep) == method.budget(32)
    assert chosen.scores is None or bool(chosen.scores.isfinite().all())


@pytest.mark.parametrize("cls", list(dict.fromkeys(map(type, SETTINGS.values()))), ids=lambda c: c.name)
def test_all_of_them_act_before_the_llm(cls):
    with pytest.raises(ValueError, match=r"layer.*<= 0"):
        cls(keep_ratio=0.5, layer=1)
    assert cls(keep_ratio=0.5).query_aware == (cls in (CDPruner, DART, MMTok))


def test_two_methods_without_their_second_half_are_faster_vlm():
    """The tokens that the CLS row attends to most (arXiv 2412.01818, first version)."""
    tokens = visual([(1, 6, 7), (1, 2, 3)])
    keep = keep_of(VisPruner(keep_ratio=0.3, important=1.0), tokens)
    assert keep == keep_of(VisionZip(keep_ratio=0.3, contextual=0.0), tokens)
    attention = tokens.signals[VisionAttention(-2)]
    best = [attention[:42].topk(12).indices, attention[42:].topk(2).indices + 42]
    assert keep == torch.cat(best).sort().values.tolist()
