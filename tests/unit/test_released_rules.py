"""`paper_compat`: the rules of released code, each written here once more, plainly, and compared on tensors."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.embedded import keep_of
from tests.support.visual import visual
from vlmopt.pruning import (
    TEXT,
    Activations,
    AttentionRows,
    CoreMatching,
    DivPrune,
    FastV,
    FocusUI,
    HiddenStates,
    HoloV,
    Projector,
    ProjectorCall,
    SparseVLM,
    TextEmbeds,
    VisionAttention,
    VisPruner,
    VisualEmbeds,
)

SEEDS = range(12)


def cosines(x):
    unit = x.double() / x.double().norm(dim=1, keepdim=True)
    return unit @ unit.T


# ---- VisPruner: survivors of a round come by falling similarity


def thinned(alike, order, quota):
    left = list(order)
    while len(left) > quota:
        even, odd = left[0::2], left[1::2]
        most = {i: max(float(alike[i, j]) for j in odd) for i in even}
        by_likeness = sorted(even, key=lambda i: -most[i])
        left = by_likeness[min(8, len(left) - quota) :] + odd
    return left


@pytest.mark.parametrize("seed", SEEDS)
def test_vis_pruner_splits_survivors_by_falling_similarity(seed):
    generator = torch.Generator().manual_seed(seed)
    features, attention = torch.randn(96, 5, generator=generator), torch.rand(96, generator=generator)
    signals = {VisionAttention(-2): attention, VisualEmbeds(): torch.randn(96, 4, generator=generator)}
    signals[Projector()] = ProjectorCall(features[:, None], lambda x: x[:, 0], None)
    tokens = visual([(1, 8, 12)])
    tokens.signals.update(signals)
    order = attention.argsort(descending=True).tolist()
    for k in (8, 31, 70):
        want = order[: k // 2] + thinned(cosines(features), order[k // 2 :], k - k // 2)
        method = VisPruner(keep_tokens=k, paper_compat=True)
        assert keep_of(method, tokens) == sorted(want)
        assert Projector() in method.needs


# ---- HoloV: longer crops first, what is left of the budget to the heaviest


def shared(attention, sizes, k):
    """Budgets of crops, or None where one would be larger than its crop, which the release pads with zero vectors."""
    means = [part.double().mean() for part in attention.split(sizes)]
    parts = [math.floor(k * float(mean / sum(means))) for mean in means]
    heaviest = sorted(range(len(sizes)), key=lambda i: -means[i])
    for i in heaviest[: k - sum(parts)]:
        parts[i] += 1
    return None if any(part > size for part, size in zip(parts, sizes, strict=True)) else parts


@pytest.mark.parametrize("seed", SEEDS)
def test_holov_shares_as_released(seed):
    generator, compared = torch.Generator().manual_seed(seed), 0
    for n, crops, k in [(70, 16, 24), (61, 7, 20), (48, 16, 16), (100, 9, 33)]:
        attention = torch.rand(n, generator=generator) + 0.1
        tokens = visual([(1, 1, n)], generator=generator)
        tokens.signals.update({VisionAttention(-2): attention, VisualEmbeds(): torch.randn(n, 6, generator=generator)})
        sizes = [n // crops + (i < n % crops) for i in range(crops)]
        parts = shared(attention, sizes, k)
        keep = HoloV(keep_tokens=k, crops=crops, paper_compat=True).select(tokens).keep
        assert len(keep) == k
        if parts is not None:
            starts = [sum(sizes[:i]) for i in range(crops)]
            best = [
                start + int(i)
                for start, part, count in zip(starts, attention.split(sizes), parts, strict=True)
                for i in part.argsort(descending=True)[:count]
            ]
            assert keep.tolist() == sorted(best)
            compared += 1
    assert compared


def test_holov_gives_what_does_not_fit_a_crop_to_the_others():
    tokens = visual([(1, 2, 4)])
    attention = torch.tensor([0.9, 0.9, 0.2, 0.21, 0.1, 0.11, 0.0, 0.0])
    tokens.signals.update({VisionAttention(-2): attention, VisualEmbeds(): torch.ones(8, 3)})
    assert keep_of(HoloV(keep_tokens=5, crops=4, paper_compat=True), tokens) == [0, 1, 3, 5, 6]
    tokens.signals[VisionAttention(-2)] = torch.zeros(8)
    assert keep_of(HoloV(keep_tokens=4, crops=4, paper_compat=True), tokens) == [0, 2, 4, 6]


# ---- CoreMatching: one text token's neurons, everything strictly above the knee


def above_the_knee(scores):
    curve = sorted(scores, reverse=True)
    last = len(curve) - 1
    distance = [abs((y - curve[0]) * last - (curve[-1] - curve[0]) * x) for x, y in enumerate(curve)]
    turn = curve[distance.index(max(distance))]
    return [i for i, score in enumerate(scores) if score > turn]


@pytest.mark.parametrize("seed", SEEDS)
def test_core_matching_reads_one_token_and_keeps_all_above_the_knee(seed):
    generator = torch.Generator().manual_seed(seed)
    image = (
        torch.randn(60, 40, generator=generator)
        + torch.linspace(-1.5, 1.5, 60)[torch.randperm(60, generator=generator)][:, None]
    )
    text = torch.randn(9, 40, generator=generator)
    tokens = visual([(1, 6, 10)])
    tokens.signals.update({Activations(5, "visual"): image, Activations(5, "text"): text})
    fires = text[4] > 0  # the fifth from the end
    scores = [int(((row > 0) & fires).sum()) for row in image]
    method = CoreMatching(paper_compat=True)
    selection = method.select(tokens)
    assert selection.scores.tolist() == scores
    assert selection.keep.tolist() == (above_the_knee(scores) or [scores.index(max(scores))])
    tokens.signals[Activations(5, "text")] = text[-2:]  # shorter than five: the first there is
    fires = text[-2] > 0
    assert method.select(tokens).scores.tolist() == [int(((row > 0) & fires).sum()) for row in image]


def test_core_matching_as_released_keeps_more_than_half_and_never_nothing():
    image = torch.tensor([[1.0] * fires + [-1.0] * (40 - fires) for fires in [*range(40, 25, -1), 0, 0, 0, 0, 0]])
    tokens = visual([(1, 4, 5)])
    tokens.signals.update({Activations(5, "visual"): image, Activations(5, "text"): torch.ones(6, 40)})
    assert keep_of(CoreMatching(paper_compat=True), tokens) == list(range(14))  # the last that fires is the knee
    assert len(CoreMatching().select(tokens).keep) == 10
    for text in (torch.ones(6, 40), torch.ones(0, 40)):
        tokens.signals.update({Activations(5, "visual"): torch.ones(20, 40), Activations(5, "text"): text})
        assert keep_of(CoreMatching(paper_compat=True), tokens) == [0]


def test_core_matching_refuses_settings_that_the_release_has_not():
    with pytest.raises(ValueError, match=r"paper_compat has no use for \['rho', 'max_ratio'\]"):
        CoreMatching(paper_compat=True, rho=0.3, max_ratio=0.9)


# ---- SparseVLM: neighbours as many as clusters, voters chosen once


def clustered(x, count):
    """DPC-kNN with `count` neighbours, one pair at a time: the mean of each cluster."""
    x = x.double()
    distance = torch.cdist(x, x) / x.shape[1] ** 0.5
    density = [math.exp(-float(row.sort().values[:count].square().mean())) for row in distance]
    delta = []
    for i, row in enumerate(distance):
        denser = [float(row[j]) for j in range(len(x)) if density[j] > density[i]]
        delta.append(min(denser) if denser else float(row.max()))
    centres = sorted(range(len(x)), key=lambda i: -density[i] * delta[i])[:count]
    nearest = [i if i in centres else min(centres, key=lambda c: float(distance[i, c])) for i in range(len(x))]
    return torch.stack([x[[i for i in range(len(x)) if nearest[i] == c]].mean(0) for c in sorted(centres)])


def asked(n, generator, whole=None):
    tokens = visual([(1, 1, n)])
    tokens.signals.update(
        {
            VisualEmbeds(): torch.randn(n, 6, generator=generator),
            TextEmbeds(): torch.randn(7, 6, generator=generator),
            AttentionRows(2, TEXT): torch.rand(3, 7, n, generator=generator),
            HiddenStates(): torch.randn(n, 6, generator=generator),
        }
    )
    tokens.signals[VisualEmbeds(whole=True)] = tokens.signals[VisualEmbeds()] if whole is None else whole
    return tokens


@pytest.mark.parametrize("seed", SEEDS)
def test_sparse_vlm_merges_as_released(seed):
    tokens = asked(240, torch.Generator().manual_seed(seed))
    selection = SparseVLM(keep_ratio=0.25, layers=(3,), paper_compat=True).select(tokens)
    k, removed = 60, 180
    order = selection.scores.argsort(descending=True).tolist()
    rest = sorted(order[k : k + int(0.3 * removed) + 1])
    count = len(rest) // 10 + 1
    want = clustered(tokens.signals[HiddenStates()][rest], count)
    assert len(selection.keep) == k + count
    assert torch.allclose(selection.written.embeds.double(), want, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_sparse_vlm_chooses_its_voters_among_all_tokens_of_the_prompt(seed):
    generator = torch.Generator().manual_seed(seed)
    every = torch.randn(200, 6, generator=generator)
    tokens = asked(40, generator, every)  # what an earlier cut has left, and everything there was
    text = tokens.signals[TextEmbeds()].double()
    relevance = (every.double() @ text.T).softmax(1).mean(0)
    votes = tokens.signals[AttentionRows(2, TEXT)].double()[:, relevance > relevance.mean()]
    scores = SparseVLM(keep_ratio=0.5, layers=(3,), paper_compat=True).select(tokens).scores
    assert torch.allclose(scores.double(), votes.mean((0, 1)), atol=1e-6)


# ---- FastV, DivPrune: one pool


def test_one_pool_refuses_another_allocation():
    for cls in (FastV, DivPrune):
        for allocation in ("proportional", "global"):
            assert cls(keep_ratio=0.5, paper_compat=True, allocation=allocation).allocation == "global"
        with pytest.raises(ValueError, match=r"one pool for all images, got allocation='equal'"):
            cls(keep_ratio=0.5, paper_compat=True, allocation="equal")


# ---- FocusUI: the budget rounded down


def test_focus_ui_rounds_its_budget_down():
    for n in (1, 7, 99, 6019):
        for percent in (1, 10, 29, 50, 57, 99, 100):
            method = FocusUI(keep_ratio=percent / 100, scorer="s", paper_compat=True)
            assert method.budget(n) == max(n * percent // 100, 1)
    assert FocusUI(keep_ratio=0.5, scorer="s").budget(99) == 50
    assert FocusUI(keep_tokens=5, scorer="s", paper_compat=True).budget(99) == 5
