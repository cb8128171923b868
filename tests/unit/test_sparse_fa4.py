"""The adapter to FlashAttention-4: its block tables, its self-test and its refusals, without the package."""

from __future__ import annotations

import pytest
import torch

from tests.support.sparse import call
from tests.support.sparse_calls import DEVICE, block_index, dense_index, inputs, random_index
from vlmopt.kernels.sparse_attention import fa4
from vlmopt.kernels.sparse_attention.reference import reference_attention


def tables_by_loop(index, heads, width):
    """Masked and full blocks of every tile as sets."""
    spread = heads // index.covered
    for b, h, t in torch.ones(index.batch, heads, index.tiles).nonzero().tolist():
        at = b, h // spread, t
        starts = index.run_start[index.run_ptr[at] : index.run_ptr[b, h // spread, t + 1]] // index.run
        full = int(index.run_full[at])
        yield (
            (b, h, t),
            *([int(n) for n in sorted(some.tolist()) if n < width] for some in (starts[full:], starts[:full])),
        )


def flash_by_the_book(q, k, v, *, softmax_scale, causal, block_sparse_tensors, return_lse):
    """What FlashAttention-4 does with block tables: [B, S, H, D], causal from the bottom right, full blocks whole."""
    assert causal
    assert return_lse
    mask_count, masked, full_count, full, (tile, run) = block_sparse_tensors
    (batch, rows, heads, d), (_, width, key_heads, _) = q.shape, k.shape
    k, v = (x.repeat_interleave(heads // key_heads, 2) for x in (k, v))
    causal_mask = torch.arange(width) <= torch.arange(rows)[:, None] + width - rows
    seen = torch.zeros(batch, heads, rows, width, dtype=torch.bool)
    for b, h, t in torch.ones(mask_count.shape).nonzero().tolist():
        span = slice(t * tile, (t + 1) * tile)
        for count, blocks, mask in (
            (mask_count, masked, causal_mask),
            (full_count, full, torch.ones_like(causal_mask)),
        ):
            for n in blocks[b, h, t, : count[b, h, t]].tolist():
                keys = slice(n * run, (n + 1) * run)
                seen[b, h, span, keys] = mask[span, keys]
    logits = torch.einsum("bihd,bjhd->bhij", q.float(), k.float()) * (softmax_scale or d**-0.5)
    logits = logits.masked_fill(~seen, -torch.inf)
    out = torch.einsum("bhij,bjhd->bihd", logits.softmax(-1).nan_to_num(0), v.float())
    return out.to(q.dtype), logits.logsumexp(-1)


def as_tuple(**named):
    return tuple(named.values())


def test_block_tables_hold_every_block_once_in_order():
    q, k, _ = inputs(300, 450, batch=2, heads=4, key_heads=2)
    index = block_index(q, k)
    got = fa4.blocks(index, 4, 4)
    for at, masked, full in tables_by_loop(index, 4, 4):
        for name, blocks in (("mask", masked), ("full", full)):
            assert got[f"{name}_block_idx"][at][: got[f"{name}_block_cnt"][at]].tolist() == blocks
    with pytest.raises(ValueError, match="multiples of 128"):
        fa4.blocks(random_index(q, k, 128, 128), 4, 4)


def test_flash_adapter_by_the_book(monkeypatch):
    monkeypatch.setattr(fa4, "_package", lambda: (flash_by_the_book, as_tuple))
    q, k, v = inputs(300, 450, batch=2, dtype=torch.bfloat16)
    index = block_index(q, k)
    called, launch = call(q, k, v, index, scale=0.2)
    for got, want in zip(
        fa4._run(called, index, True),
        reference_attention(called, launch, True),
        strict=True,
    ):
        torch.testing.assert_close(got.float(), want.float(), atol=2e-2, rtol=0)
    fa4._self_test(torch.device("cpu"), torch.float16, 80, 128)


@pytest.mark.parametrize(
    "fault", ["full blocks are left out", "output of a row that sees nothing", "log-sum-exp in base 2"]
)
def test_a_wrong_flash_package_fails_its_self_test(monkeypatch, fault):
    def wrong(q, k, v, *, block_sparse_tensors, **more):
        if fault.startswith("full"):
            block_sparse_tensors[2].zero_()
        out, lse = flash_by_the_book(q, k, v, block_sparse_tensors=block_sparse_tensors, **more)
        if fault.startswith("output"):
            out[lse.transpose(1, 2) == -torch.inf] = torch.nan
        return out, lse * 1.4427 if fault.startswith("log") else lse

    monkeypatch.setattr(fa4, "_package", lambda: (wrong, as_tuple))
    with pytest.raises(RuntimeError, match="fails its self-test"):
        fa4._self_test.__wrapped__(torch.device("cpu"), torch.bfloat16, 64, 128)


@pytest.mark.skipif(DEVICE == "cuda", reason="says why where there is no GPU")
def test_flash_refuses_without_a_gpu():
    q, k, v = inputs(128)
    with pytest.raises(ValueError, match="Hopper"):
        fa4.fa4_attention(*call(q, k, v, dense_index(q, k, 128, 128)))
