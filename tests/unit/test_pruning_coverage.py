"""Coverage: the lazy greedy against a loop one can read, SCOPE and MMTok on numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from tests.support.embedded import embedded, keep_of, visual
from vlmopt.pruning import MMTok, Projector, ProjectorCall, Scope, TextEmbeds, VisionAttention, VisualEmbeds
from vlmopt.pruning.coverage import cover
from vlmopt.pruning.mmtok import likeness


def circle(*degrees):
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
    return torch.stack([angle.cos(), angle.sin()], 1)


def by_loop(reach, k, weights):
    """The same in double precision, every gain at every step."""
    reach, covered, order = reach.double(), torch.zeros(reach.shape[1], dtype=torch.double), []
    gains = []
    for _ in range(k):
        gain = (reach - covered).clamp_min(0).sum(1) * weights
        gains.append(gain)
        gain = gain.clone()
        gain[order] = -1
        order.append(int(gain.argmax()))
        covered = torch.maximum(covered, reach[order[-1]])
    return order, gains


def test_scope_golden():
    """Angles, attention and gains worked out beforehand."""
    unit, attention = circle(0, 10, 90, 100, 200), torch.tensor([0.4, 0.3, 0.1, 0.15, 0.05])
    order, gains = by_loop(unit @ unit.T, 3, attention.double())
    assert order == [0, 3, 4]
    assert torch.allclose(gains[0], torch.tensor([0.7939, 0.6475, 0.2158, 0.2977, 0.05]).double(), atol=6e-5)
    assert torch.allclose(gains[1][1:], torch.tensor([0.0567, 0.1985, 0.2977, 0.05]).double(), atol=6e-5)
    assert torch.allclose(gains[2][[1, 2, 4]], torch.tensor([0.0046, 0.0015, 0.05]).double(), atol=6e-5)
    assert cover(unit @ unit.T, 3, attention).tolist() == [0, 3, 4]
    order = cover(unit @ unit.T, 3).tolist()
    assert (order[0], order[2]) == (1, 4)
    assert order[1] in (2, 3)  # two that only stand for each other always tie
    tokens = embedded(unit * torch.tensor([3, 0.1, 1, 7, 2])[:, None], signals={VisionAttention(-2): attention})
    assert keep_of(Scope(keep_tokens=3), tokens) == [0, 3, 4]
    assert keep_of(Scope(keep_tokens=1, alpha=0), tokens) == [1]


def test_mmtok_golden():
    z, words = circle(0, 20, 90, 180), circle(15, 80)
    reach = torch.cat([likeness(words, z, 0.1), 0.5 * likeness(z, z, 0.2)], 1)
    order, gains = by_loop(reach, 3, 1.0)
    assert order == [2, 1, 3]
    assert torch.allclose(gains[0], torch.tensor([0.3369, 0.4191, 0.6190, 0.1250]).double(), atol=6e-5)
    assert torch.allclose(gains[1][[0, 1, 3]], torch.tensor([0.3327, 0.4074, 0.1233]).double(), atol=6e-5)
    assert torch.allclose(gains[2][[0, 3]], torch.tensor([0.0186, 0.1233]).double(), atol=6e-5)
    assert cover(reach, 3).tolist() == [2, 1, 3]
    tokens = embedded(z, signals={TextEmbeds(): words})
    method = MMTok(keep_tokens=2, text_temperature=0.1, features="embeds")
    assert keep_of(method, tokens) == [1, 2]


def test_mmtok_compares_features_of_the_tower_unless_told():
    z, features = circle(0, 20, 90, 180), torch.eye(4)[[0, 0, 0, 1]][:, None].repeat(1, 2, 1)
    tokens = embedded(z, signals={Projector(): ProjectorCall(features, lambda x: x, None)})
    assert keep_of(MMTok(keep_tokens=2, relevance="none"), tokens) == [0, 3]  # two kinds of features
    assert keep_of(MMTok(keep_tokens=2, relevance="none", features="embeds"), tokens) == [1, 3]
    assert not MMTok(keep_ratio=0.5, relevance="none").query_aware


@pytest.mark.parametrize("extreme", [2.0**-126, 1e-30, 3.4e38])
@pytest.mark.parametrize("name", ["alpha", "text_temperature", "vision_temperature"])
def test_mmtok_chooses_no_token_twice_at_extreme_settings(name, extreme):
    make = torch.Generator().manual_seed(0)
    tokens = embedded(torch.randn(40, 8, generator=make), signals={TextEmbeds(): torch.randn(5, 8, generator=make)})
    kept = keep_of(MMTok(keep_tokens=25, features="embeds", **{name: extreme}), tokens)
    assert len(set(kept)) == 25


def test_mmtok_without_a_question_is_refused_or_told_so():
    tokens = embedded(circle(0, 20, 90), signals={TextEmbeds(): torch.zeros(0, 2)})
    with pytest.raises(ValueError, match=r"mmtok.*no text.*relevance='none'"):
        MMTok(keep_tokens=2).select(tokens)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n", [3, 40, 300])
def test_lazy_gains_change_no_choice(n, seed):
    generator = torch.Generator().manual_seed(seed)
    unit = normalize(torch.randn(n, 12, generator=generator) + 0.4, dim=1)
    weights = torch.rand(n, generator=generator) if seed % 2 else torch.ones(n)
    k = n if n < 300 else 120
    assert cover(unit @ unit.T, k, weights).tolist() == by_loop(unit @ unit.T, k, weights.double())[0]


@pytest.mark.parametrize("n", [7, 100])
def test_equal_tokens_go_in_order(n):
    reach = torch.ones(n, n)
    assert cover(reach, n).tolist() == list(range(n))
    assert cover(torch.zeros(n, n), n).tolist() == list(range(n))
    flat = embedded(torch.ones(n, 4), signals={VisionAttention(-2): torch.zeros(n), TextEmbeds(): torch.ones(2, 4)})
    for method in (Scope(keep_tokens=5), MMTok(keep_tokens=5, features="embeds")):
        assert keep_of(method, flat) == [0, 1, 2, 3, 4]


def test_copies_of_what_is_chosen_come_last():
    generator = torch.Generator().manual_seed(4)
    unit = normalize(torch.randn(60, 9, generator=generator), dim=1).repeat(2, 1)
    order = cover(unit @ unit.T, 120, resolution=1e-6)
    assert (order[:60] % 60).unique().numel() == 60
    assert torch.equal(order[60:], order[60:].sort().values)


@pytest.mark.parametrize("method", [Scope(keep_tokens=9), MMTok(keep_tokens=9, features="embeds")])
def test_only_the_direction_of_a_token_counts(method):
    tokens = visual([(1, 6, 7)])
    embeds = tokens.signals[VisualEmbeds()].clone()
    keep = keep_of(method, tokens)
    embeds[keep[2]] *= 50
    assert keep_of(method, visual([(1, 6, 7)], {VisualEmbeds(): embeds})) == keep
    embeds[keep[2]] = 0  # no number trouble
    assert len(keep_of(method, visual([(1, 6, 7)], {VisualEmbeds(): embeds}))) == 9
    half = visual([(1, 6, 7)], {VisualEmbeds(): embeds.bfloat16()})
    same = visual([(1, 6, 7)], {VisualEmbeds(): embeds.bfloat16().float()})
    assert keep_of(method, half) == keep_of(method, same)


def test_attention_that_is_no_number_is_refused():
    attention = torch.rand(12)
    attention[3] = torch.nan
    with pytest.raises(ValueError, match=r"scope.*finite"):
        Scope(keep_tokens=4).select(visual([(1, 3, 4)], {VisionAttention(-2): attention}))
