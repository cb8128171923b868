"""Diversity selectors: against loops one can read, and the papers' golden cases."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import normalize

from tests.support.embedded import embedded, keep_of, visual
from vlmopt.pruning import Projector, TextEmbeds, VisualEmbeds
from vlmopt.pruning.cd_pruner import CDPruner, likeness
from vlmopt.pruning.cen_prune import CenPrune, centred
from vlmopt.pruning.div_prune import DivPrune
from vlmopt.pruning.greedy import farthest
from vlmopt.pruning.similarity import largest_volume, min_max

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


def test_div_prune_as_released_pools_images_and_rounds_to_even():
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
    assert not plain.query_aware
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
    images = [visual([(1, 4, 5)], seed=seed) for seed in range(6)]
    starts = [keep_of(CenPrune(keep_tokens=1), tokens) for tokens in images]
    assert starts == [keep_of(DivPrune(keep_tokens=1), tokens) for tokens in images]
    assert starts != [[int(centred(tokens.signals[VisualEmbeds()])[1].argmax())] for tokens in images]


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
