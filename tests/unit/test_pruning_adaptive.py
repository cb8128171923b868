"""Methods that decide themselves how many tokens stay: ZipVL and CoreMatching."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.support.visual import visual
from vlmopt.pruning import Activations, AttentionRows, VisualTokens
from vlmopt.pruning.core_matching import CoreMatching, core_counts, knee
from vlmopt.pruning.zipvl import ZipVL, mass_count, per_row

MASS = torch.tensor([0.5, 0.3, 0.1, 0.05, 0.03, 0.02])


def attended(method, attention, grids=None) -> VisualTokens:
    """Tokens that are looked at by rows [R, n] of one head."""
    tokens = visual(grids or [(1, 1, attention.shape[1])])
    return dataclasses.replace(tokens, signals={AttentionRows(method.layer - 1, method.rows): attention[None]})


def firing(method, image, text, grids=None) -> VisualTokens:
    """Tokens with activations [n, m], behind a text with [R, m]."""
    signals = {Activations(method.layer - 1, "visual"): image, Activations(method.layer - 1, "text"): text}
    return dataclasses.replace(visual(grids or [(1, 1, len(image))]), signals=signals)


@pytest.mark.parametrize(("tau", "want"), [(0.9, 3), (0.95, 4), (0.4, 1), (0.5, 1), (0.51, 2), (1.0, 6)])
def test_mass_count(tau, want):
    assert mass_count(MASS, tau) == want
    assert mass_count(MASS[[3, 0, 5, 1, 4, 2]] * 7e3, tau) == want  # neither order nor scale matter


def test_mass_count_of_plain_masses():
    assert mass_count(torch.eye(9)[4], 0.975) == 1
    assert mass_count(torch.zeros(9), 0.975) == 1
    assert mass_count(torch.ones(1), 0.5) == 1
    for n, tau, want in [(100, 0.9, 90), (64, 0.975, 63), (7, 0.5, 4), (576, 0.975, 562), (10, 0.1, 1)]:
        assert mass_count(torch.full((n,), 1 / n), tau) == want
    mass = torch.rand(500, generator=torch.Generator().manual_seed(0)).square()
    counts = [mass_count(mass, tau / 100) for tau in range(1, 101)]
    assert counts == sorted(counts)
    assert counts[-1] == 500


def test_normalised_attention_of_uniform_causal_rows():
    attention = torch.ones(10, 10).tril() / torch.arange(1, 11)[:, None]
    harmonic = [sum(1 / i for i in range(1, n + 1)) for n in range(11)]
    summed = torch.tensor([harmonic[10] - harmonic[j] for j in range(10)])
    assert torch.allclose(attention.sum(0), summed)
    assert torch.allclose(per_row(attention), summed / torch.arange(10, 0, -1))
    assert attention.sum(0)[0] / attention.sum(0)[-1] == pytest.approx(29.3, abs=0.05)
    assert per_row(attention)[0] / per_row(attention)[-1] == pytest.approx(2.93, abs=0.005)
    assert torch.isfinite(per_row(torch.zeros(3, 4))).all()


def test_zipvl_counts_by_sums_and_chooses_by_means():
    attention = torch.zeros(4, 5)
    attention[:, 0], attention[:, 1] = 0.2, 0.1  # seen by four rows: sums 0.8 and 0.4
    attention[3, 4] = 0.5  # seen by the last row alone: sum 0.5, but the highest mean
    method = ZipVL(layer=3, tau=0.8)
    assert method.needs == {AttentionRows(2, 64)}
    selection = method.select(attended(method, attention))
    assert selection.keep.tolist() == [0, 1, 4]  # 0.8 of the means would be held by two
    assert selection.stats == {"wanted": 3}
    assert torch.allclose(selection.scores, torch.tensor([0.2, 0.1, 0, 0, 0.5]))
    assert dataclasses.replace(method, tau=0.4).select(attended(method, attention)).keep.tolist() == [4]


def test_zipvl_means_over_heads():
    method = ZipVL(layer=1, tau=0.5, rows=1)
    heads = torch.tensor([[[0.9, 0.1, 0.0]], [[0.0, 0.4, 0.8]]])
    tokens = dataclasses.replace(visual([(1, 1, 3)]), signals={AttentionRows(0, 1): heads})
    assert method.select(tokens).keep.tolist() == [0, 2]


def test_zipvl_budget_is_a_ceiling():
    attention = torch.rand(3, 40, generator=torch.Generator().manual_seed(0))
    assert ZipVL().keep_ratio == 1
    assert ZipVL().budget(40) == 40
    free = ZipVL(tau=0.9).select(attended(ZipVL(), attention)).stats["wanted"]
    assert 20 < free < 40
    for method in (ZipVL(tau=0.9, keep_tokens=7), ZipVL(tau=0.9, keep_ratio=0.175)):
        selection = method.select(attended(method, attention))
        assert selection.keep.tolist() == attention.mean(0).topk(7).indices.sort().values.tolist()
        assert selection.stats == {"wanted": free}
    images = attended(ZipVL(), attention, [(1, 4, 5), (1, 4, 5)])  # each image has its own count
    kept = ZipVL(tau=0.9).select(images)
    assert [facts["wanted"] for facts in kept.stats["segments"]] == [
        mass_count(part.sum(0), 0.9) for part in attention.split(20, dim=1)
    ]


def test_only_what_never_prunes_is_neutral():
    assert ZipVL(tau=1).is_identity
    assert len(ZipVL(tau=1).select(attended(ZipVL(), torch.eye(5))).keep) == 5
    assert not ZipVL().is_identity
    assert not ZipVL(tau=1, keep_ratio=0.5).is_identity
    assert not CoreMatching().is_identity


def test_knee_of_a_curve():
    assert int(knee(torch.tensor([10, 9.5, 9, 8.8, 3, 2, 1.5, 1.2, 1, 1]))) == 4
    for flat in ([3.0, 3, 3, 3], [4.0, 3, 2, 1], [5.0, 1], [2.0]):
        assert int(knee(torch.tensor(flat))) == 0


@pytest.mark.parametrize(
    ("rho", "want"),
    [(1e-6, [2, 0, 0, 0, 0, 0]), (0.5, [2, 2, 0, 0, 0, 0]), (0.75, [2, 2, 0, 1, 0, 0]), (1.0, [2, 2, 0, 1, 1, 1])],
)
def test_core_neurons_are_the_highest_positive_ones(rho, want):
    rows = torch.tensor([[4.0, 3, -9, 2, 1, 0], [5, 4, -1, -2, -3, 3], [-1, -1, -1, 0, 0, -1]])
    assert core_counts(rows, rho).tolist() == want


def test_core_counts_of_many_rows_are_those_of_their_parts():
    rows = torch.randn(600, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(core_counts(rows, 0.4), sum(core_counts(part, 0.4) for part in rows.split(1)))


def planted(n=60, m=64, seed=0):
    """[n, m] tokens of which 3, 17, 40 and 59 fire neurons 0..7, and a text [5, m] that fires them, too."""
    generator = torch.Generator().manual_seed(seed)
    image, text = -torch.rand(n, m, generator=generator), -torch.rand(5, m, generator=generator)
    image[:, 20:40] = torch.rand(n, 20, generator=generator) + 0.1  # loud, but of no interest to the text
    image[[3, 17, 40, 59], :8] = 0.01
    text[:, :8] = torch.rand(5, 8, generator=generator) + 0.5
    return image, text


def test_core_tokens_fire_the_neurons_of_the_text():
    method = CoreMatching(layer=4)
    assert method.needs == {Activations(3, "visual"), Activations(3, "text")}
    image, text = planted()
    selection = method.select(firing(method, image, text))
    assert selection.keep.tolist() == [3, 17, 40, 59]
    assert selection.stats == {"knee": 4}
    scale = torch.rand(60, 1) * 100 + 0.01
    scaled = method.select(firing(method, image * scale, text * torch.tensor([[1.0], [9], [0.1], [30], [2]])))
    assert torch.equal(scaled.scores, selection.scores)
    assert torch.equal(method.select(firing(method, image.bfloat16(), text.bfloat16())).keep, selection.keep)


def test_beta_bounds_the_core_of_the_sentence():
    image, text = planted()
    for beta, want in [(1.0, 8), (4 / 64, 4), (1 / 64, 1), (1e-6, 1)]:
        method = CoreMatching(rho=1.0, beta=beta)
        assert int(method.select(firing(method, image, text)).scores.max()) == want


def test_the_paper_counts_visual_tokens_too():
    method = CoreMatching(rho=1.0, beta=20 / 64, sentence="prompt")
    image, text = planted()
    scores = method.select(firing(method, image, text)).scores
    assert (scores == 20).all()  # the neurons that every visual token fires are in the majority


def test_core_tokens_stay_within_bounds():
    method = CoreMatching()
    image, text = torch.rand(100, 16), torch.rand(3, 16)  # all fire everything: equal counts
    selection = method.select(firing(method, image, text))
    assert selection.keep.tolist() == [0, 1, 2, 3, 4]
    assert torch.isfinite(selection.scores).all()
    silent = method.select(firing(method, -image, -text))
    assert silent.keep.tolist() == [0, 1, 2, 3, 4]
    image[-20:] *= -1  # the knee is the last of 80; those above it stay
    assert len(method.select(firing(method, image, text)).keep) == 50
    assert len(CoreMatching(max_ratio=0.9).select(firing(method, image, text)).keep) == 79
    assert len(CoreMatching(keep_ratio=0.03).select(firing(method, image, text)).keep) == 3
    assert len(CoreMatching(keep_tokens=33).select(firing(method, image, text)).keep) == 33
    assert len(CoreMatching().select(firing(method, image[:1], text)).keep) == 1
    assert len(CoreMatching().select(firing(method, image[:9], text[:0])).keep) == 1  # no text at all
    with pytest.raises(ValueError, match=r"min_ratio=0\.6 exceeds max_ratio=0\.5"):
        CoreMatching(min_ratio=0.6)
