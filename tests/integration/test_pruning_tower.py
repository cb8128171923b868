"""Selectors that read the vision tower's attention: merging, look-alikes and crops, against loops one can read."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from tests.support.embedded import embedded, keep_of, visual
from vlmopt.pruning import Projector, ProjectorCall, VisionAttention, VisionKeys, VisualEmbeds
from vlmopt.pruning.holov import HoloV, holistic
from vlmopt.pruning.vis_pruner import VisPruner, thin_out
from vlmopt.pruning.vision_zip import VisionZip

# ---- VisionZip


def zipped(tokens, k, contextual, compat):
    """VisionZip in loops: dominant, (target, merged patches, members) per contextual token."""
    attention, keys = tokens.signals[VisionAttention(-2)], tokens.signals[VisionKeys(-2)]
    inputs, count = tokens.signals[Projector()].inputs, math.floor(contextual * k + 0.5)
    best = sorted(range(len(tokens)), key=lambda i: (-float(attention[i]), i))[: k - count]
    rest = [i for i in range(len(tokens)) if i not in best]
    targets = rest[:: max(1, len(rest) // count)][:count]
    members: dict[int, list[int]] = {t: [] for t in targets}
    for i in rest:
        if i not in targets:
            members[max(targets, key=lambda t: float(cosine_similarity(keys[i], keys[t], 0)))].append(i)
    merged = []
    for t, others in members.items():
        if compat:
            merged.append(inputs[t] + sum((inputs[i] for i in others), torch.zeros(2, 3)) / max(len(others), 1))
        else:
            merged.append(torch.stack([inputs[i] for i in (t, *others)]).mean(0))
    return sorted(best), torch.stack(merged), members


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize(("k", "contextual"), [(10, 0.3), (13, 10 / 64), (28, 0.5), (4, 1.0), (29, 1.0)])
def test_vision_zip_against_loops(k, contextual, compat):
    tokens = visual([(1, 5, 6)], seed=k)
    method = VisionZip(keep_tokens=k, contextual=contextual, paper_compat=compat)
    dominant, merged, members = zipped(tokens, k, contextual, compat)
    chosen = method.select(tokens)
    assert chosen.keep.tolist() == sorted([*dominant, *members])
    assert len(chosen.keep) == k
    written = chosen.written
    assert written.slots.tolist() == list(members)
    assert torch.allclose(written.embeds, tokens.signals[Projector()].function(merged), atol=1e-6)
    origin = torch.full((30,), -1)
    for target, others in members.items():
        origin[[target, *others]] = target
    assert torch.equal(written.origin, origin)


def test_vision_zip_default_split_is_that_of_the_paper():
    chosen = VisionZip(keep_tokens=64).select(visual([(1, 12, 12)]))
    assert chosen.stats == {"contextual": 10}
    assert len(chosen.written.slots) == 10
    assert VisionZip(keep_tokens=3).select(visual([(1, 12, 12)])).written is None  # too few to merge any
    assert VisionZip(keep_tokens=144).select(visual([(1, 12, 12)])).written is None


def test_identical_tokens_merge_to_themselves_or_as_released_to_twice_themselves():
    tokens = visual([(1, 4, 5)])
    inputs = tokens.signals[Projector()].inputs[:1].expand(20, 2, 3)
    call = ProjectorCall(inputs, lambda x: x.flatten(1), None)
    same = {**tokens.signals, Projector(): call, VisionKeys(-2): torch.ones(20, 5)}
    tokens = dataclasses.replace(tokens, signals=same)
    for compat, factor in ((False, 1), (True, 2)):
        written = VisionZip(keep_tokens=8, contextual=0.25, paper_compat=compat).select(tokens).written
        assert len(written.slots) == 2
        # Equal keys: every other token goes to the first target, and the second stays what it is.
        assert torch.allclose(written.embeds[0], factor * inputs[0].flatten())
        assert torch.allclose(written.embeds[1], inputs[0].flatten())


def test_order_of_tokens_that_are_no_targets_does_not_matter():
    tokens = visual([(1, 5, 6)])
    method = VisionZip(keep_tokens=12, contextual=0.25)
    chosen = method.select(tokens)
    free = torch.tensor([i for i in range(30) if i not in chosen.keep.tolist()])
    order = torch.arange(30)
    order[free] = free[torch.randperm(len(free), generator=torch.Generator().manual_seed(0))]
    moved = {s: s.subset(v, order) for s, v in tokens.signals.items()}
    again = method.select(dataclasses.replace(tokens, signals=moved))
    assert torch.equal(chosen.keep, again.keep)
    assert torch.allclose(chosen.written.embeds, again.written.embeds, atol=1e-6)


def test_merged_tokens_of_two_images_stay_apart():
    tokens = visual([(1, 4, 5), (1, 5, 5)])
    chosen = VisionZip(keep_ratio=0.4, contextual=0.4).select(tokens)
    merged = chosen.written.origin >= 0
    assert torch.equal(tokens.item[chosen.written.origin[merged]], tokens.item[merged])
    assert tokens.item[chosen.written.slots].bincount().tolist() == [3, 4]
    assert torch.isin(chosen.written.slots, chosen.keep).all()


# ---- VisPruner, HoloV


def thinned(z, quota):
    """The rounds of VisPruner in loops."""
    left = list(range(len(z)))
    while len(left) > quota:
        even, odd = left[::2], left[1::2]
        most = {i: max(float(cosine_similarity(z[i], z[j], 0)) for j in odd) for i in even}
        gone = sorted(even, key=lambda i: -most[i])[: min(8, len(left) - quota)]
        left = [i for i in even if i not in gone] + odd
    return left


@pytest.mark.parametrize("quota", [1, 3, 11, 25, 40])
def test_look_alikes_leave_as_in_loops(quota):
    z = torch.randn(40, 5, generator=torch.Generator().manual_seed(quota))
    assert thin_out(z, quota).tolist() == thinned(z, quota)


def test_vis_pruner_keeps_the_most_attended_and_one_of_each_kind():
    kinds = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).repeat(4, 1)
    tokens = embedded(kinds, signals={VisionAttention(-2): torch.linspace(1, 0, 20)})
    keep = keep_of(VisPruner(keep_tokens=8), tokens)
    assert keep[:4] == [0, 1, 2, 3]
    assert keep_of(VisPruner(keep_tokens=8, important=1.0), tokens) == list(range(8))
    diverse = keep_of(VisPruner(keep_tokens=12, important=0.0), tokens)
    assert {i % 5 for i in diverse} == {0, 1, 2, 3, 4}
    assert keep_of(VisPruner(keep_tokens=5, important=0.5), tokens)[:2] == [0, 1]


def test_holov_shares_the_budget_by_the_attention_of_crops():
    attention = torch.cat([torch.full((8,), 0.3), torch.full((8,), 0.1)])
    attention[12] = 0.11
    tokens = visual([(1, 4, 4)], {VisionAttention(-2): attention, VisualEmbeds(): torch.ones(16, 4)})
    keep = keep_of(HoloV(keep_tokens=8, crops=2), tokens)
    assert keep == [0, 1, 2, 3, 4, 5, 8, 12]  # three to one, the best in each
    everything = keep_of(HoloV(keep_tokens=14, crops=2), tokens)
    assert everything == [*range(8), 8, 9, 10, 11, 12, 13]  # what a full crop cannot take goes to the other


def test_holov_ranks_by_variance_too_unless_as_released():
    attention, z = torch.full((16,), 0.5), torch.eye(8)[:1].repeat(16, 1)
    attention[[4, 5, 0, 3]] = torch.tensor([0.505, 0.504, 0.502, 0.501])
    z[4:7] = torch.eye(8)[1]  # the first crop shows two kinds; similarities of the frequent one vary more
    tokens = visual([(1, 4, 4)], {VisionAttention(-2): attention, VisualEmbeds(): z})
    assert keep_of(HoloV(keep_tokens=4, crops=2), tokens)[:2] == [0, 3]
    released = keep_of(HoloV(keep_tokens=4, crops=2, paper_compat=True), tokens)
    assert released == [0, 4, 5, 8]  # by attention alone, and the odd one goes to the heavier crop
    crop = holistic(attention[:8], z[:8])
    assert torch.allclose(crop.mean(), 1.09 * attention[:8].mean())
    cosines = z[:8] @ z[:8].T
    variances = torch.stack([torch.cat([row[:i], row[i + 1 :]]).var(correction=0) for i, row in enumerate(cosines)])
    assert torch.allclose(crop, attention[:8] + 0.09 * variances * attention[:8].mean() / variances.mean())
