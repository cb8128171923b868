"""Attention in parts and put together again, and gains of heads: against whole attention in fp64."""

from __future__ import annotations

import pytest
import torch

from tests.integration.test_correct_rows import SHAPES, TIGHT, draw, masks
from tests.support.partial_attention import masses, partition_attention, remix
from tests.unit.test_attention_rows import causal, oracle
from vlmopt.attention_fix import correct_rows, scale_heads


def parts_of(width, batch, generator, count=3):
    """Disjoint Bool[B, K] that cover every key; some may be empty."""
    part = torch.randint(count, (batch, width), generator=generator)
    return [part == index for index in range(count)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parts_with_factor_one_are_the_whole(shape):
    query, key, value, generator = draw(shape)
    batch, width = shape[0], shape[4]
    for mask, first, _, _ in masks(shape, generator):
        sets = parts_of(width, batch, generator)
        parts = [partition_attention(query, key, value, keys, mask, 0.3, first_row=first) for keys in sets]
        whole, _ = correct_rows(query, key, value, mask, 0.3, [], first_row=first)
        got = remix(parts, [1.0] * len(parts))
        assert got.isfinite().all()
        assert (got.transpose(1, 2) - whole).abs().max() < TIGHT


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_factors_scale_the_weights_of_their_part(shape, softcap):
    query, key, value, generator = draw(shape, 1)
    batch, heads, kv_heads, rows, width, _ = shape
    sets = parts_of(width, batch, generator)
    factors = [torch.rand(batch, heads, rows, generator=generator, dtype=torch.float64) for _ in sets]
    parts = [partition_attention(query, key, value, keys, None, 0.3, softcap=softcap) for keys in sets]
    weights = oracle(query, key, causal(rows, width, width - rows), 0.3, softcap=softcap)
    edited = sum(weights * keys[:, None, None] * factor[..., None] for keys, factor in zip(sets, factors, strict=True))
    want = torch.einsum("bhrk,bhkd->bhrd", edited, value.repeat_interleave(heads // kv_heads, 1))
    assert (remix(parts, factors) - want).abs().max() < TIGHT


def test_masses_are_shares_of_attention():
    query, key, value, generator = draw((2, 4, 2, 3, 9, 8), 2)
    sets = parts_of(9, 2, generator)
    weights = oracle(query, key, causal(3, 9, 6), 0.3)
    got = masses([partition_attention(query, key, value, keys, None, 0.3)[1] for keys in sets])
    for share, keys in zip(got, sets, strict=True):
        assert torch.allclose(share, (weights * keys[:, None, None]).sum(-1), atol=TIGHT)
    assert torch.allclose(sum(got), torch.ones((), dtype=torch.float64))


def test_parts_and_rows_without_keys_are_zero():
    query, key, value, _ = draw((1, 2, 2, 3, 6, 4), 3)
    none = torch.zeros(1, 6, dtype=torch.bool)
    out, lse = partition_attention(query, key, value, none, None, 0.3)
    assert out.eq(0).all()
    assert lse.eq(-torch.inf).all()
    blind = torch.ones(1, 1, 3, 6, dtype=torch.bool)
    blind[:, :, 1] = False
    parts = [partition_attention(query, key, value, keys, blind, 0.3) for keys in (none, ~none)]
    mixed = remix(parts, [1.0, 1.0])
    assert mixed[:, :, 1].eq(0).all()
    assert mixed.isfinite().all()


def test_large_logits_do_not_overflow():
    """Parts whose logits differ by more than exp can hold."""
    query, key, value, generator = draw((1, 2, 1, 2, 9, 4), 4, torch.float32, 40.0)
    sets = parts_of(9, 1, generator)
    parts = [partition_attention(query, key, value, keys, None, 1.0) for keys in sets]
    whole, _ = correct_rows(query, key, value, None, 1.0, [])
    assert (remix(parts, [1.0] * 3).transpose(1, 2) - whole).abs().max() < 1e-4


def test_refusals():
    query, key, value, _ = draw((1, 2, 2, 3, 6, 4), 5)
    part = partition_attention(query, key, value, torch.ones(1, 6).bool(), None, 0.3)
    for parts, factors in (([part], [1.0, 1.0]), ([], [])):
        with pytest.raises(ValueError, match="factors"):
            remix(parts, factors)
    with pytest.raises(ValueError, match=r"keys \(1, 5\) must be \[B, K\] = \(1, 6\)"):
        partition_attention(query, key, value, torch.ones(1, 5).bool(), None, 0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_gains_leave_all_else_to_the_bit(dtype):
    generator = torch.Generator().manual_seed(6)
    out = torch.randn(2, 5, 4, 8, generator=generator).to(dtype)
    out[0, 0, 0, 0] = torch.inf
    gain = torch.tensor([[1.0, 1.3, 1.0, 2.0], [1.0, 1.0, 0.7, 1.0]])
    rows = torch.tensor([[True, False, False, True, True], [False, False, False, False, True]])
    for chosen in (rows, None):
        got = scale_heads(out, gain, chosen)
        touched = (gain != 1)[:, None] & (torch.ones_like(rows) if chosen is None else chosen)[..., None]
        assert got.dtype == dtype
        assert torch.equal(got[~touched], out[~touched])
        scaled = (out.to(torch.promote_types(dtype, torch.float32)) * gain[:, None, :, None]).to(dtype)  # rounded once
        assert torch.equal(got[touched], scaled[touched])
        assert touched.any()


def test_a_gain_acts_linearly_behind_the_projection():
    """The output changes by (alpha - 1) sum over the chosen heads of A_i W_i."""
    generator = torch.Generator().manual_seed(7)
    out = torch.randn(2, 3, 4, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(4 * 8, 10, generator=generator, dtype=torch.float64)
    gain = torch.tensor([[1.0, 2.0, 1.0, 2.0]] * 2, dtype=torch.float64)
    change = scale_heads(out, gain).flatten(2) @ weight - out.flatten(2) @ weight
    want = sum(out[:, :, head] @ weight.view(4, 8, 10)[head] for head in (1, 3))
    assert (change - want).abs().max() < TIGHT
