"""PAINT: which patches are chosen, what their boost does, and guidance."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.row_views import close, edited, seen
from vlmopt.attention_fix import ImageBoost, InformedTokens, Tower, correct_rows, guide
from vlmopt.attention_fix.informed_tokens import largest, outliers

PAINT = InformedTokens()


def choose(correction, first, late):
    return correction.choose(
        {correction.local_block: torch.tensor(first), correction.summary_block: torch.tensor(late)}
    )


def places(mask):
    return mask.nonzero().flatten().tolist()


def test_a_row_by_hand():
    view = seen(5, image=range(1, 5), local=(1, 2), summary=(3,))
    assert close(edited(PAINT, [1.0, 0.5, -0.4, 0.2, 0.0], view), [1.0, 0.75, -0.2, 0.26, 0.0])
    unseen = seen(
        5, image=range(1, 5), local=(1, 2), summary=(3,), allowed=torch.tensor([1, 0, 1, 1, 1]).bool()[None, None, None]
    )
    assert close(edited(PAINT, [1.0, 0.5, -0.4, 0.2, 0.0], unseen), [1.0, 0.5, -0.2, 0.26, 0.0])


def test_outliers_by_hand():
    scores = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 100])  # quartiles 3 and 7, fence 13
    assert places(outliers(scores)) == [8]
    assert places(outliers(torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 13]))) == []  # on the fence
    assert places(outliers(torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 13.01]))) == [8]
    interpolated = torch.tensor([0.0, 1, 2, 10])  # quartiles 0.75 and 4, fence 8.875
    assert places(outliers(interpolated)) == [3]
    assert not outliers(torch.full((16,), 0.37)).any()
    assert not outliers(torch.tensor([1.0])).any()


@pytest.mark.parametrize("n", [1, 7, 100, 576, 1000])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.29, 0.3, 1.0])
def test_the_number_of_local_patches(n, ratio):
    scores = torch.rand(n, generator=torch.Generator().manual_seed(n))
    chosen = largest(scores, ratio)
    count = n * round(ratio * 100) // 100
    assert chosen.sum() == count
    assert count in (0, n) or scores[chosen].min() >= scores[~chosen].max()


def test_equal_scores_go_to_the_first():
    assert places(largest(torch.tensor([1.0, 2, 1, 2, 1, 1]), 0.5)) == [0, 1, 3]
    assert places(largest(torch.ones(8), 0.25)) == [0, 1]


def test_what_is_both_is_summary():
    first = [9.0, 8, 1, 1, 1, 1, 1, 1]
    late = [5.0, 0, 0, 0, 0, 0, 0, 0]
    chosen = choose(PAINT, first, late)
    assert {name: places(mask) for name, mask in chosen.items()} == {"local": [1], "summary": [0]}
    chosen = choose(PAINT, first, [1.0] * 8)  # nothing stands out
    assert {name: places(mask) for name, mask in chosen.items()} == {"local": [0, 1], "summary": []}


@pytest.mark.parametrize("seed", range(5))
def test_sets_are_disjoint_and_inside_the_image(seed):
    first, late = torch.rand(2, 576, generator=torch.Generator().manual_seed(seed)) ** 8
    chosen = PAINT.choose({0: first, -2: late})
    count = int((late > late.quantile(0.75) * 2.5 - late.quantile(0.25) * 1.5).sum())
    assert count > 1
    assert chosen["summary"].sum() == count
    assert set(places(chosen["summary"])) == set(late.topk(count).indices.tolist())
    both = set(places(chosen["summary"])) & set(first.topk(144).indices.tolist())
    assert chosen["local"].sum() == 144 - len(both)
    assert not (chosen["local"] & chosen["summary"]).any()
    assert all(mask.shape == (576,) and mask.dtype == torch.bool for mask in chosen.values())


def test_the_tower_is_read_in_two_blocks():
    assert PAINT.needs == {Tower(0), Tower(-2)}
    other = InformedTokens(local_block=3, summary_block=-1)
    assert other.needs == {Tower(3), Tower(-1)}
    assert places(choose(other, [1.0, 0, 0, 0], [0.0, 0, 0, 0])["local"]) == [0]
    assert not InformedTokens(alpha=0, beta=0, gamma=1.1).needs  # guidance alone


def test_without_summary_tokens_only_alpha_acts():
    logits, view = torch.randn(1, 4, 1, 8), seen(8, image=range(8), local=(1, 2), summary=())
    weak, strong = (InformedTokens(beta=beta).edit(logits, view)[0] for beta in (0.0, 1.0))
    assert torch.equal(weak, strong)
    assert not torch.equal(weak, logits)


def test_each_strength_alone():
    row, view = [1.0, 0.5, -0.4, 0.2, 0.0], seen(5, image=range(1, 5), local=(1, 2), summary=(3,))
    assert close(edited(InformedTokens(alpha=0), row, view), [1.0, 0.5, -0.4, 0.26, 0.0])
    assert close(edited(InformedTokens(beta=0), row, view), [1.0, 0.75, -0.2, 0.2, 0.0])


def test_the_closed_form_of_the_output():
    """o' = (o - m o_V + e^(lse' - lse) o'_V) / (1 - m + e^(lse' - lse)), V the boosted keys."""
    generator = torch.Generator().manual_seed(2)
    query, key, value = torch.randn(3, 1, 2, 9, 8, generator=generator, dtype=torch.float64) * 3
    query = query[:, :, -1:]
    view = seen(9, image=range(1, 8), local=(1, 2, 5), summary=(3,))
    fixed, _ = correct_rows(query[None][0], key, value, None, 1.0, [(PAINT, view)])
    z = (query @ key.transpose(-1, -2))[0, :, 0]  # [H, K]
    chosen = view.marks["local"][0] | view.marks["summary"][0]
    rate = 0.5 * view.marks["local"][0] + 0.3 * view.marks["summary"][0]
    after = (z + rate * z.abs())[:, chosen]
    base, lse = torch.einsum("hk,hkd->hd", z.softmax(-1), value[0]), z.logsumexp(-1)
    grown = (after.logsumexp(-1) - lse).exp()[:, None]
    part = torch.einsum("hk,hkd->hd", z.softmax(-1)[:, chosen], value[0, :, chosen])
    moved = torch.einsum("hk,hkd->hd", after.softmax(-1), value[0, :, chosen])
    mass = z.softmax(-1)[:, chosen].sum(-1, keepdim=True)
    want = (base - part + grown * moved) / (1 - mass + grown)
    assert (fixed[0, 0] - want).abs().max() < 1e-13


def test_the_first_token_is_boosted_with_guidance_and_without():
    view, row = seen(5, image=range(1, 5), local=(1, 2), summary=(3,)), [1.0, 0.5, -0.4, 0.2, 0.0]
    assert edited(InformedTokens(gamma=1.1), row, view) == edited(PAINT, row, view) != row


def test_a_caution_beyond_the_cliff():
    assert PAINT.caution is None
    assert InformedTokens(alpha=0.6).caution is None
    assert "alpha=0.7" in InformedTokens(alpha=0.7).caution


@pytest.mark.parametrize("boost", [InformedTokens, ImageBoost])
def test_guidance_alone_is_not_neutral(boost):
    off = {"alpha": 0.0, "beta": 0.0} if boost is InformedTokens else {"alpha": 0.0}
    assert boost(**off).is_identity
    guided = boost(**off, gamma=1.1)
    assert not guided.is_identity
    assert not guided.edit(torch.randn(1, 4, 1, 5), seen(5, image=range(1, 5)))[1].any()
    for wrong in ({"gamma": 0.9}, {"gamma": 3.5}, {"cutoff": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            boost(**wrong)


def test_guidance_by_hand():
    p, q = torch.tensor([[0.6, 0.3, 0.1]]), torch.tensor([[0.2, 0.3, 0.5]])
    got = guide(p.log() + 5, q.log() - 2, 2.0, 0.0)  # logits, up to a constant each
    assert torch.allclose(got, 2 * p.log() - q.log(), atol=1e-5)
    cut = guide(p.log(), q.log(), 2.0, 0.2)  # 0.1 is below 0.2 * 0.6
    assert torch.isinf(cut).tolist() == [[False, False, True]]
    assert torch.equal(cut[0, :2], guide(p.log(), q.log(), 2.0, 0.0)[0, :2])


@pytest.mark.parametrize("cutoff", [0.0, 0.1])
def test_tokens_that_are_excluded_stay_so(cutoff):
    logits, other = torch.zeros(1, 5), torch.randn(1, 5)
    logits[0, 2] = -torch.inf
    assert guide(logits, other, 1.5, cutoff).isfinite().tolist() == [[True, True, False, True, True]]


def test_guidance_of_one_is_none():
    logits, other = torch.randn(2, 3, 50), torch.randn(2, 3, 50)
    assert torch.equal(guide(logits, other, 1.0, 0.5), logits.log_softmax(-1))
    half = guide(logits.half(), other.half(), 1.5)
    assert half.dtype == torch.float32
    assert math.isclose(float(guide(logits, logits, 3.0, 0.0).exp().sum(-1).mean()), 1.0, rel_tol=1e-5)


@pytest.mark.parametrize("cutoff", [0.0, 0.1, 0.9, 1.0])
def test_the_likeliest_token_always_stays(cutoff):
    logits, other = torch.randn(64, 100) * 5, torch.randn(64, 100) * 5
    out = guide(logits, other, 2.5, cutoff)
    assert out.gather(1, logits.argmax(1, keepdim=True)).isfinite().all()
    kept = logits.softmax(-1) >= cutoff * logits.softmax(-1).amax(-1, keepdim=True) * (1 - 1e-6)
    assert torch.equal(out.isfinite(), kept)
