"""Explicit attention rows against full attention in fp64 with repeated keys."""

from __future__ import annotations

import pytest
import torch

from vlmopt.attention_fix import attention_rows

SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 4, 2, 3, 7, 8),
    (1, 6, 1, 5, 5, 16),
    (3, 8, 8, 1, 33, 4),
    (2, 6, 3, 2, 129, 32),
]  # B H Hkv R W D


TOLERANCE = 5e-6  # fp32 rounding of logits up to 60


def oracle(query, key, allowed, scaling, bias=None, softcap=None):
    """[B, H, R, W] in fp64; a row without allowed keys is 0."""
    key = key.double().repeat_interleave(query.shape[1] // key.shape[1], 1)
    logits = torch.einsum("bhrd,bhwd->bhrw", query.double(), key) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias.double()
    weights = logits.masked_fill(~allowed, -torch.inf).softmax(-1)
    return weights.nan_to_num(0.0)


def draw(shape, seed=0, dtype=torch.float32):
    batch, heads, kv_heads, rows, width, dim = shape
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, rows, dim, generator=generator) * 2
    key = torch.randn(batch, kv_heads, width, dim, generator=generator) * 2
    return query.to(dtype), key.to(dtype), generator


def causal(rows, width, first):
    return torch.tensor([[column <= first + row for column in range(width)] for row in range(rows)])


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_causal(shape, softcap):
    query, key, _ = draw(shape)
    rows, width = shape[3], shape[4]
    want = oracle(query, key, causal(rows, width, width - rows), 0.3, softcap=softcap)
    got = attention_rows(query, key, None, 0.3, softcap)
    assert got.dtype == torch.float32
    assert (got - want).abs().max() < TOLERANCE
    assert torch.allclose(got.sum(-1), torch.ones(()), atol=1e-6)
    for first in range(0, width - rows + 1, max(1, width // 5)):
        want = oracle(query, key, causal(rows, width, first), 0.3, softcap=softcap)
        got = attention_rows(query, key, None, 0.3, softcap, first_row=first)
        assert (got - want).abs().max() < TOLERANCE
        assert got.masked_select(~causal(rows, width, first)).eq(0).all()


@pytest.mark.parametrize("mask_heads", ["one", "all"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bool_mask(shape, mask_heads):
    query, key, generator = draw(shape, 1)
    batch, heads, _, rows, width, _ = shape
    size = (batch, heads if mask_heads == "all" else 1, rows, width)
    allowed = torch.rand(size, generator=generator) < 0.5
    got = attention_rows(query, key, allowed, 0.3)
    assert (got - oracle(query, key, allowed, 0.3)).abs().max() < TOLERANCE
    shared = allowed[:1]
    assert (attention_rows(query, key, shared, 0.3) - oracle(query, key, shared, 0.3)).abs().max() < TOLERANCE


@pytest.mark.parametrize("blocked", ["own", "float16", "inf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_additive_mask(shape, dtype, blocked):
    query, key, generator = draw(shape, 2)
    batch, _, _, rows, width, _ = shape
    allowed = torch.rand(batch, 1, rows, width, generator=generator) < 0.5
    bias = torch.randn(batch, 1, rows, width, generator=generator).to(dtype)
    lowest = {"own": torch.finfo(dtype).min, "float16": torch.finfo(torch.float16).min, "inf": -torch.inf}
    mask = bias.masked_fill(~allowed, lowest[blocked])
    got = attention_rows(query, key, mask, 0.3)
    assert (got - oracle(query, key, allowed, 0.3, bias)).abs().max() < TOLERANCE
    assert got.isfinite().all()


@pytest.mark.parametrize("kind", [torch.bool, torch.long])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_key_validity(shape, kind):
    query, key, generator = draw(shape, 3)
    batch, _, _, rows, width, _ = shape
    valid = torch.rand(batch, width, generator=generator) < 0.6
    allowed = causal(rows, width, width - rows) & valid[:, None, None]
    got = attention_rows(query, key, valid.to(kind), 0.3)
    assert (got - oracle(query, key, allowed, 0.3)).abs().max() < TOLERANCE


def test_rows_without_any_key_are_zero():
    query, key, _ = draw((2, 4, 2, 3, 6, 8))
    allowed = torch.ones(2, 1, 3, 6, dtype=torch.bool)
    allowed[1, :, 0] = False
    additive = torch.zeros(2, 1, 3, 6).masked_fill(~allowed, torch.finfo(torch.float32).min)
    for mask in (allowed, additive):
        got = attention_rows(query, key, mask, 0.3)
        assert got[1, :, 0].eq(0).all()
        assert torch.allclose(got[1, :, 1:].sum(-1), torch.ones(()))
    assert attention_rows(query, key, torch.zeros(2, 6), 0.3).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_give_fp32_rows(dtype):
    query, key, _ = draw((2, 6, 3, 2, 129, 32), 4, dtype)
    got = attention_rows(query, key, None, 0.3)
    assert got.dtype == torch.float32
    assert (got - oracle(query, key, causal(2, 129, 127), 0.3)).abs().max() < TOLERANCE


def test_huge_logits_stay_finite():
    query, key, _ = draw((1, 2, 1, 2, 9, 4))
    got = attention_rows(query * 1e4, key * 1e4, None, 1.0)
    assert got.isfinite().all()
    assert torch.allclose(got.sum(-1), torch.ones(()))


def test_rows_agree_with_the_rows_of_a_full_prefill():
    query, key, _ = draw((2, 4, 2, 12, 12, 8))
    full = attention_rows(query, key, None, 0.3)
    for first in (0, 4, 11):
        some = attention_rows(query[:, :, first : first + 1], key, None, 0.3, first_row=first)
        assert torch.allclose(some, full[:, :, first : first + 1], atol=1e-6)


@pytest.mark.parametrize(
    ("mask", "first", "match"),
    [
        (torch.ones(2, 5), None, r"mask \(2, 5\) must be \[B, W\]"),
        (torch.ones(6), None, "must be"),
        (torch.ones(2, 1, 2, 6, dtype=torch.bool), None, "does not fit"),
        (torch.ones(2, 3, 3, 6, dtype=torch.bool), None, "does not fit"),
        (torch.ones(2, 1, 3, 6, dtype=torch.bool), 0, "first_row=0"),
    ],
)
def test_masks_that_do_not_fit(mask, first, match):
    query, key, _ = draw((2, 4, 2, 3, 6, 8))
    with pytest.raises(ValueError, match=match):
        attention_rows(query, key, mask, 0.3, first_row=first)


def test_heads_that_do_not_fit():
    query, key, _ = draw((2, 4, 2, 3, 6, 8))
    for other in (key[:1], key[..., :4], key.repeat(1, 2, 1, 1)[:, :3]):
        with pytest.raises(ValueError, match="do not fit"):
            attention_rows(query, other, None, 0.3)
