"""Diversity selectors, merging and change between frames: against loops one can read, and the papers' golden cases."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from pruning import (
    Projector,
    ProjectorCall,
    Signal,
    TextEmbeds,
    VisionAttention,
    VisionKeys,
    VisualEmbeds,
    VisualTokens,
)
from pruning.cd_pruner import CDPruner, likeness
from pruning.cen_prune import CenPrune, centred
from pruning.div_prune import DivPrune
from pruning.evs import EVS
from pruning.greedy import farthest
from pruning.holov import HoloV, holistic
from pruning.similarity import largest_volume, min_max
from pruning.vis_pruner import VisPruner, thin_out
from pruning.vision_zip import VisionZip

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
    "holov": HoloV(keep_ratio=0.4),
    "holov-16": HoloV(keep_tokens=3, crops=16, paper_compat=True),
}


def visual(grids, signals=None, seed=0) -> VisualTokens:
    """Whole grids of random tokens (d = 8, two patches of 3 values each), some signals given."""
    generator = torch.Generator().manual_seed(seed)
    coords = torch.cat([torch.cartesian_prod(*map(torch.arange, grid)).reshape(-1, 3) for grid in grids])
    lengths = tuple(math.prod(grid) for grid in grids)
    n, weight = len(coords), torch.randn(6, 8, generator=generator)
    inputs = torch.randn(n, 2, 3, generator=generator)

    def project(x):
        return torch.tanh(x.flatten(1) @ weight)

    every: dict[Signal, object] = {
        VisualEmbeds(): project(inputs),
        TextEmbeds(): torch.randn(4, 8, generator=generator),
        Projector(): ProjectorCall(inputs, project, None),
    }
    for layer in (-2, 0):
        every[VisionAttention(layer)] = torch.rand(n, generator=generator)
        every[VisionKeys(layer)] = torch.randn(n, 5, generator=generator)
    item = torch.repeat_interleave(torch.arange(len(grids)), torch.tensor(lengths))
    signals = every | (signals or {})
    return VisualTokens(n, torch.arange(n), item, coords, tuple(grids), signals, 0, lengths)


def embedded(rows, grid=None, signals=None) -> VisualTokens:
    return visual([grid or (1, 1, len(rows))], {VisualEmbeds(): rows} | (signals or {}))


def keep_of(method, tokens):
    return method.select(tokens).keep.tolist()


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
def test_a_picture_is_chosen_from_as_if_it_were_alone(method):
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


@pytest.mark.parametrize("cls", [DivPrune, CDPruner, CenPrune, VisionZip, EVS, VisPruner, HoloV])
def test_all_of_them_act_before_the_llm(cls):
    with pytest.raises(ValueError, match=r"layer.*<= 0"):
        cls(keep_ratio=0.5, layer=1)
    assert cls(keep_ratio=0.5).asks_text == (cls is CDPruner)


# ---- DivPrune


def degrees(*angles):
    radians = torch.tensor(angles, dtype=torch.float).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], 1)


def test_div_prune_golden_order():
    z = degrees(0, 60, 90, 95)
    assert farthest(z, 4).tolist() == [0, 3, 1, 2]
    kept = [keep_of(DivPrune(keep_tokens=k), embedded(z)) for k in (1, 2, 3, 4)]
    assert kept == [[0], [0, 3], [0, 1, 3], [0, 1, 2, 3]]


def max_min(z, k):
    """DivPrune as the paper writes it, in fp64."""
    distance = 1 - normalize(z.double(), dim=1) @ normalize(z.double(), dim=1).T
    alone = distance.clone().fill_diagonal_(math.inf).amin(1)
    picked = [int(alone.argmax())]
    while len(picked) < k:
        rest = [i for i in range(len(z)) if i not in picked]
        picked.append(max(rest, key=lambda i: float(distance[i, picked].amin())))
    return sorted(picked)


@pytest.mark.parametrize("seed", range(4))
def test_div_prune_against_the_definition(seed):
    tokens = visual([(1, 5, 6)], seed=seed)
    z = tokens.signals[VisualEmbeds()]
    for k in (2, 7, 20):
        assert keep_of(DivPrune(keep_tokens=k), tokens) == max_min(z, k)
    lengths = torch.rand(30, 1) * 10 + 0.1
    scaled = dataclasses.replace(tokens, signals={VisualEmbeds(): z * lengths})
    assert keep_of(DivPrune(keep_tokens=7), scaled) == max_min(z, 7)


def test_copies_are_never_returned_twice_and_come_last():
    z = normalize(torch.randn(3, 6, generator=torch.Generator().manual_seed(1)), dim=1).repeat(4, 1)
    for cls in (DivPrune, CDPruner):
        method = cls(keep_tokens=3) if cls is DivPrune else cls(keep_tokens=3, relevance="none")
        assert sorted(i % 3 for i in keep_of(method, embedded(z))) == [0, 1, 2]
        for k in range(4, 12):
            assert len(set(keep_of(dataclasses.replace(method, keep_tokens=k), embedded(z)))) == k


def test_div_prune_as_released_pools_pictures_and_rounds_to_even():
    z = torch.cat([torch.ones(5, 4), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))])
    tokens = visual([(1, 1, 5), (1, 1, 5)], {VisualEmbeds(): z})
    assert tokens.item[DivPrune(keep_ratio=0.4).select(tokens).keep].bincount().tolist() == [2, 2]
    pooled = DivPrune(keep_ratio=0.4, paper_compat=True).select(tokens)
    assert tokens.item[pooled.keep].bincount().tolist() == [1, 3]
    counts = [DivPrune(keep_ratio=0.5, paper_compat=c).budget(n) for n in (5, 7, 1) for c in (False, True)]
    assert counts == [3, 2, 4, 4, 1, 1]


# ---- determinants


def brute_force(kernel, k):
    """Greedy by the log-determinants themselves."""
    picked: list[int] = []
    for _ in range(k):
        rest = [i for i in range(len(kernel)) if i not in picked]
        picked.append(max(rest, key=lambda i: float(kernel[[*picked, i]][:, [*picked, i]].logdet())))
    return picked


@pytest.mark.parametrize("seed", range(5))
def test_largest_volume_against_log_determinants(seed):
    generator = torch.Generator().manual_seed(seed)
    x, weights = torch.randn(12, 16, generator=generator), torch.rand(12, generator=generator) + 0.1
    unit = normalize(x.double(), dim=1)
    assert largest_volume(x, 9).tolist() == brute_force((unit @ unit.T).fill_diagonal_(1), 9)
    scaled = unit * weights.double()[:, None]
    assert largest_volume(x * 7, 9, weights).tolist() == brute_force(scaled @ scaled.T, 9)


def test_beyond_the_rank_nothing_breaks():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    picked = largest_volume(x, 40)
    assert sorted(picked.tolist()) == list(range(40))
    assert picked[5:].tolist() == sorted(picked[5:].tolist())  # nothing adds volume: lowest index first
    assert sorted(largest_volume(x, 40, torch.zeros(40)).tolist()) == list(range(40))


def test_cd_pruner_takes_what_the_question_names():
    text = torch.tensor([[1.0, 0, 0, 0], [0.8, 0.6, 0, 0]])
    z = torch.eye(4)[[3, 2, 0, 1, 3]]
    tokens = embedded(z, signals={TextEmbeds(): text})
    assert torch.allclose(likeness(z, text), torch.tensor([0, 0, 0.9, 0.3, 0]))
    selection = CDPruner(keep_tokens=2).select(tokens)
    assert selection.keep.tolist() == [2, 3]  # the sign is ours: like the question, not unlike it
    assert torch.allclose(selection.scores, torch.tensor([0, 0, 1, 1 / 3, 0]) + 1e-6 / 0.9)
    assert keep_of(CDPruner(keep_tokens=2, relevance="none"), tokens) == [0, 1]


@pytest.mark.parametrize("seed", range(3))
def test_cd_pruner_against_log_determinants(seed):
    tokens = visual([(1, 2, 4)], {VisualEmbeds(): torch.randn(8, 12), TextEmbeds(): torch.randn(5, 12)}, seed)
    z, text = (normalize(tokens.signals[s].double(), dim=1) for s in (VisualEmbeds(), TextEmbeds()))
    r = (z @ text.T).mean(1)
    r = (r - r.min() + 1e-6) / (r.max() - r.min())
    kernel = r[:, None] * (z @ z.T) * r
    assert keep_of(CDPruner(keep_tokens=5), tokens) == sorted(brute_force(kernel, 5))


def test_cd_pruner_needs_a_question_only_where_it_uses_one():
    tokens = visual([(1, 3, 3)], {TextEmbeds(): torch.zeros(0, 8)})
    with pytest.raises(ValueError, match="relevance='none'"):
        CDPruner(keep_tokens=3).select(tokens)
    plain = CDPruner(keep_tokens=3, relevance="none")
    assert plain.needs == {VisualEmbeds()}
    assert not plain.asks_text
    assert CDPruner(keep_tokens=3).needs == {VisualEmbeds(), TextEmbeds()}
    assert len(keep_of(plain, tokens)) == 3


# ---- Cen-Prune


def test_centring_ignores_a_common_offset_and_distinctiveness_does_not():
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    (a, g), (b, h) = centred(x), centred(x + torch.linspace(1, 2, 6))
    assert torch.allclose(a, b, atol=1e-5)
    assert not torch.allclose(g, h, atol=0.05)
    cosines = normalize(x.double(), dim=1) @ normalize(x.double(), dim=1).T
    own = -(cosines.sum(1) - 1) / 19
    assert torch.allclose(g.double(), (own - own.min()) / (own.max() - own.min()), atol=1e-5)
    assert (float(g.min()), float(g.max())) == (0, 1)


def test_orthonormal_tokens_are_equally_distinctive():
    x = torch.linalg.qr(torch.randn(16, 9, generator=torch.Generator().manual_seed(0)))[0].T
    assert torch.equal(centred(x)[1], torch.ones(9))
    assert torch.equal(centred(torch.ones(4, 3))[1], torch.ones(4))
    assert torch.equal(centred(torch.eye(3)[:, :2])[1], torch.ones(3))  # a zero row is like nothing, not even itself
    moved = centred(x)[0]
    first = farthest(x, 1)[0]
    assert keep_of(CenPrune(keep_tokens=4), embedded(x)) == farthest(moved, 4, first=first).sort().values.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_cen_prune_against_the_definition(seed):
    tokens = visual([(1, 4, 5)], seed=seed)
    z = tokens.signals[VisualEmbeds()].double()
    moved = normalize(z - z.mean(0), dim=1)
    distance, g = 1 - moved @ moved.T, centred(z)[1].double()
    picked = max_min(z, 1)
    while len(picked) < 6:
        rest = [i for i in range(20) if i not in picked]
        picked.append(max(rest, key=lambda i: float(g[i] * distance[i, picked].amin())))
    selection = CenPrune(keep_tokens=6).select(tokens)
    assert selection.keep.tolist() == sorted(picked)
    assert torch.allclose(selection.scores.double(), g)
    kernel = g[:, None] * (moved @ moved.T) * g
    assert keep_of(CenPrune(keep_tokens=6, base="dpp"), tokens) == sorted(brute_force(kernel, 6))


def test_cen_prune_starts_where_div_prune_does():
    pictures = [visual([(1, 4, 5)], seed=seed) for seed in range(6)]
    starts = [keep_of(CenPrune(keep_tokens=1), tokens) for tokens in pictures]
    assert starts == [keep_of(DivPrune(keep_tokens=1), tokens) for tokens in pictures]
    assert starts != [[int(centred(tokens.signals[VisualEmbeds()])[1].argmax())] for tokens in pictures]


def test_cen_prune_reads_all_patches_of_a_token_before_the_projector():
    tokens = visual([(1, 4, 5)])
    flat = tokens.signals[Projector()].inputs.flatten(1)
    before = CenPrune(keep_tokens=6, features="projector_input")
    assert before.needs == {Projector()}
    assert keep_of(before, tokens) == keep_of(CenPrune(keep_tokens=6), embedded(flat))
    assert keep_of(before, tokens) != keep_of(CenPrune(keep_tokens=6), tokens)


def test_min_max():
    assert min_max(torch.tensor([2.0, 4.0, 3.0])).tolist() == [0, 1, 0.5]
    assert min_max(torch.tensor([0.5, 0.5 + 1e-7])).tolist() == [1, 1]
    assert min_max(torch.tensor([0.0, math.nan])).isnan().any()


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


def test_merged_tokens_of_two_pictures_stay_apart():
    tokens = visual([(1, 4, 5), (1, 5, 5)])
    chosen = VisionZip(keep_ratio=0.4, contextual=0.4).select(tokens)
    merged = chosen.written.origin >= 0
    assert torch.equal(tokens.item[chosen.written.origin[merged]], tokens.item[merged])
    assert tokens.item[chosen.written.slots].bincount().tolist() == [3, 4]
    assert torch.isin(chosen.written.slots, chosen.keep).all()


# ---- EVS


def static(t, h, w, d=8, seed=0):
    return torch.randn(h * w, d, generator=torch.Generator().manual_seed(seed)).repeat(t, 1)


def test_of_a_static_video_the_first_frame_stays():
    tokens = embedded(static(4, 4, 4), (4, 4, 4))
    assert keep_of(EVS(keep_tokens=16), tokens) == list(range(16))
    assert keep_of(EVS(keep_ratio=0.25, paper_compat=True), tokens) == list(range(16))
    assert keep_of(EVS(keep_tokens=20), tokens)[:16] == list(range(16))


def test_what_moves_stays_before_what_does_not():
    z = static(5, 3, 4).view(5, 12, 8)
    z[1:, 7] = torch.randn(4, 8, generator=torch.Generator().manual_seed(9))  # one cell changes in every frame
    tokens = embedded(z.reshape(60, 8), (5, 3, 4))
    moving = [7 + 12 * t for t in range(1, 5)]
    chosen = EVS(keep_tokens=16).select(tokens)
    assert chosen.keep.tolist() == [*range(12), *moving]
    assert chosen.stats == {"spread": False}
    assert chosen.scores[:12].tolist() == [2.0] * 12
    assert torch.allclose(chosen.scores[moving[1]], 1 - cosine_similarity(z[2, 7], z[1, 7], 0), atol=1e-6)


@pytest.mark.parametrize("grid", [(1, 4, 4), (4, 4, 4), (7, 3, 5), (16, 2, 2)])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.75, 0.9, 0.99])
def test_as_released_the_count_follows_the_formula(grid, rate):
    t, h, w = grid
    method = EVS(keep_ratio=1 - rate, paper_compat=True)
    assert method.adaptive  # the budget is no promise here
    assert not EVS(keep_ratio=1 - rate).adaptive
    keep = keep_of(method, visual([grid]))
    assert len(keep) == max(h * w, int(t * h * w * (1 - rate)))
    assert keep[: h * w] == list(range(h * w))
    assert len(keep_of(EVS(keep_ratio=1 - rate), visual([grid]))) == EVS(keep_ratio=1 - rate).budget(t * h * w)


def test_equal_changes_go_to_the_lowest_index():
    z = torch.tensor([[1.0, 0], [0, 1]]).repeat_interleave(4, 0).repeat(3, 1)  # every cell turns by 90 degrees
    assert keep_of(EVS(keep_tokens=7), embedded(z, (6, 2, 2))) == list(range(7))


def test_a_budget_below_the_first_frame_is_spread_over_it():
    chosen = EVS(keep_tokens=4).select(visual([(4, 8, 8)]))
    assert chosen.keep.tolist() == [y * 8 + x for y in (1, 5) for x in (1, 5)]
    assert chosen.stats == {"spread": True}
    picture = EVS(keep_ratio=0.25).select(visual([(1, 8, 8)]))  # all of a picture is new
    assert picture.keep.tolist() == [y * 8 + x for y in (0, 2, 4, 6) for x in (0, 2, 4, 6)]
    assert picture.stats == {"spread": True}
    assert len(keep_of(EVS(keep_ratio=0.25, paper_compat=True), visual([(1, 8, 8)]))) == 64


def test_two_videos_share_one_pool_or_their_own():
    z = torch.cat([static(3, 2, 2), torch.randn(12, 8, generator=torch.Generator().manual_seed(3))])
    tokens = visual([(3, 2, 2), (3, 2, 2)], {VisualEmbeds(): z})
    pooled = EVS(keep_tokens=14).select(tokens)
    assert tokens.item[pooled.keep].bincount().tolist() == [4, 10]
    own = EVS(keep_tokens=14, allocation="proportional").select(tokens)
    assert tokens.item[own.keep].bincount().tolist() == [7, 7]
    with pytest.raises(ValueError, match="segment"):
        EVS(keep_ratio=0.5, segment="frame")


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
    assert keep_of(HoloV(keep_tokens=4, crops=2, paper_compat=True), tokens)[:2] == [4, 5]
    crop = holistic(attention[:8], z[:8])
    assert torch.allclose(crop.mean(), 1.09 * attention[:8].mean())
    cosines = z[:8] @ z[:8].T
    variances = torch.stack([torch.cat([row[:i], row[i + 1 :]]).var(correction=0) for i, row in enumerate(cosines)])
    assert torch.allclose(crop, attention[:8] + 0.09 * variances * attention[:8].mean() / variances.mean())
