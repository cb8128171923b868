"""Sparse attention is softmax attention over the keys that an index keeps, whichever back-end computes it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.support.sparse import LAYOUTS, attend, build, call, csr, dense, padded, seen_by, tensors
from vlmopt.kernels.sparse_attention import AttentionInputs, Launch, SparseIndex, backends, check_index, native
from vlmopt.kernels.sparse_attention import gather as gathering

KINDS = {
    "blocks": {"aligned": True},
    "runs": {},
    "columns": {"columns": 0.2, "share": 0.0},
    "runs and columns": {"columns": 0.2, "tile": 64, "run": 32},
    "rows in any order": {"orders": "q", "columns": 0.1},
    "some rows": {"orders": "q-"},
    "keys in any order": {"orders": "k", "columns": 0.1},
    "some rows and keys": {"orders": "qk-", "columns": 0.1},
    "grid": {"grid": [7, 3, 1], "columns": 0.1, "run": 4},
    "grid of keys in any order": {"grid": [12, 3, 1], "orders": "k"},
    "slash": {"slash": [36, 5], "run": 4, "columns": 0.1},
    "slash of keys in any order": {"slash": [50, 3], "orders": "k", "run": 2},
    "grid meets slash": {"grid": [12, 3, 1], "slash": [9, 2], "run": 2},
    "grid meets slash, some rows": {"grid": [36, 3, 1], "slash": [36, 2], "orders": "q-", "run": 2, "share": 0.8},
    "some heads": {"heads": [3, 0, 1]},
    "tables for key heads": {"tables": 2, "columns": 0.1, "orders": "q"},
}


@pytest.fixture(autouse=True, params=["gather", "native"])
def chosen(request, monkeypatch):
    """What "auto" stands for in this file; half precision is for gather alone."""
    if request.param == "gather":
        monkeypatch.setattr(backends, "_automatic", lambda inputs, launch: "gather")
    elif reason := native.refusal(AttentionInputs(*tensors()[:3], 1.0), Launch(build(*tensors()[:2], {}))):
        pytest.skip(reason)


def both(q, k, v, index, **given):
    """Output and log-sum-exp of the back-end and of the oracle."""
    return [attend(q, k, v, index, return_lse=True, backend=b, **given) for b in ("auto", "reference")]


def same(found, expected, tolerance=1e-5):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert torch.equal(a.isinf(), b.isinf())
        assert not a.isnan().any()
        assert (a - b).masked_fill(a.isinf(), 0).abs().max() < tolerance


def causal(q, k, v):
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_kept_keys_and_no_others(kind, layout):
    q, k, v, given = tensors(LAYOUTS[layout])
    index = build(q, k, given, **KINDS[kind])
    check_index(*call(q, k, v, index, **given))
    found, expected = both(q, k, v, index, **given)
    same(found, expected)
    same([attend(q, k, v, index, **given)], expected[:1])  # without log-sum-exps


@pytest.mark.parametrize("width", [64, 100])
@pytest.mark.parametrize("kind", ["runs and columns", "grid meets slash", "keys in any order"])
def test_lists_longer_than_one_softmax_are_merged(kind, width, monkeypatch):
    monkeypatch.setattr(gathering, "WIDTH", width)
    monkeypatch.setattr(gathering, "SCORES", 1)  # and one tile at a time
    q, k, v, _ = tensors()
    same(*both(q, k, v, build(q, k, {}, **KINDS[kind])))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_all_blocks_are_dense_attention(backend, dtype, tolerance):
    q, k, v, _ = tensors({"rows": 200}, d=64, dtype=dtype)
    out = attend(q, k, v, dense(q, k), backend=backend)
    assert out.dtype == dtype
    assert (out.float() - causal(q.float(), k.float(), v.float())).abs().max() < tolerance


@pytest.mark.parametrize(
    "d", [17, 64]
)  # odd sizes are widened to fp32, even ones go to a matrix unit where there is one
def test_bfloat16_of_any_head_size(d):
    q, k, v, _ = tensors({"rows": 200}, d=d, dtype=torch.bfloat16)
    index = build(q, k, {}, columns=0.1)
    (out, lse), (expected, exact) = both(q, k, v, index)
    assert (out.float() - expected.float()).abs().max() < 2e-2
    assert (lse - exact).masked_fill(exact.isinf(), 0).abs().max() < 1e-4


@pytest.mark.parametrize("d", [64, 80, 96, 128])
@pytest.mark.parametrize(("query_heads", "key_heads"), [(2, 2), (4, 2), (7, 1), (8, 1), (14, 2)])
def test_head_sizes_and_groups(d, query_heads, key_heads):
    q, k, v, _ = tensors({"rows": 100}, query_heads, key_heads, d, batch=1)
    same(*both(q, k, v, build(q, k, {}, columns=0.1)))
    assert (attend(q, k, v, dense(q, k)) - causal(q, k, v)).abs().max() < 1e-5


def test_heads_that_share_a_table_are_those_with_equal_ones():
    q, k, v, _ = tensors(query_heads=8)
    index = build(q, k, {}, tables=2, columns=0.2, orders="q", grid=[40, 3, 1], run=4)
    names = ("run_ptr", "run_full", "col_ptr", "q_order", "grid")
    apart = replace(index, **{n: getattr(index, n).repeat_interleave(4, 1) for n in names})
    found = [attend(q, k, v, i, return_lse=True, backend="auto") for i in (index, apart)]
    same(*found, tolerance=2e-6)


@pytest.mark.parametrize("orders", ["q", "k", "qk"])
def test_no_order_changes_what_is_computed(orders):
    q, k, v, _ = tensors({"rows": 200})
    index = dense(q, k)
    shuffled = build(q, k, {}, orders=orders, tile=64, run=64)
    every = index.run_start.new_tensor(range(0, 200, 64))  # in any order every tile may see all keys
    ptr = torch.arange(2 * 4 * 4 + 1).mul(4).unfold(0, 5, 4).reshape(2, 4, 5)
    index = replace(shuffled, run_ptr=ptr, run_start=every.repeat(32), run_full=torch.zeros(2, 4, 4, dtype=torch.int32))
    assert (attend(q, k, v, index) - causal(q, k, v)).abs().max() < 1e-5


@pytest.mark.parametrize("p", [0, -1])
@pytest.mark.parametrize("s", [7, 36, 64, 196])
@pytest.mark.parametrize("lines", ["v", "s", "vs"])
def test_lines_of_a_grid_by_residue_classes(lines, s, p):
    q, k, v, _ = tensors({"rows": 430}, 2, 1, batch=1)
    p, delta, row = p % s, 3 % s, torch.arange(430)
    order = ((row - p - 1) % s * 430 + row).argsort().int().expand(1, 1, -1)
    index = build(q, k, {}, share=0.0, grid=[s, p, int("v" in lines)], slash=[s * ("s" in lines), delta])
    mask = torch.zeros(430, 430, dtype=torch.bool)
    if "v" in lines:
        mask |= (row % s == p)[None]
    if "s" in lines:
        mask |= (row[:, None] - row - delta) % s == 0
    mask &= row[:, None] >= row
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    expected = expected.masked_fill(~mask.any(1)[:, None], 0)
    for q_order in (None, order):
        out = attend(q, k, v, replace(index, q_order=q_order), backend="auto")
        assert (out - expected).abs().max() < 1e-5


def test_keys_sorted_by_kind_with_segments_of_any_length():
    lengths = [1, 63, 64, 65, 257, 2, 30]
    kind = torch.tensor([0, 1]).repeat(4)[: len(lengths)].repeat_interleave(torch.tensor(lengths))
    q, k, v, _ = tensors({"rows": sum(lengths)}, batch=1)
    order = kind.argsort(stable=True).int().expand(1, 1, -1)
    index = dense(q, k)
    tiles, blocks = index.tiles, -(-len(kind) // 64)
    every = torch.arange(0, blocks * 64, 64, dtype=torch.int32).repeat(4 * tiles)
    ptr = (torch.arange(4)[:, None] * tiles + torch.arange(tiles + 1)).mul(blocks)[None]
    index = replace(index, run_ptr=ptr, run_start=every, run_full=index.run_full * 0, q_order=order, k_order=order)
    assert (attend(q, k, v, index) - causal(q, k, v)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["runs and columns", "some rows and keys", "grid meets slash"])
def test_the_future_is_never_seen(kind):
    q, k, v, _ = tensors()
    index = build(q, k, {}, **KINDS[kind])
    before = attend(q, k, v, index, backend="auto")
    seen = seen_by(q, k, index)
    for j in (0, 37, 64, 149):
        other_k, other_v = k.clone(), v.clone()
        other_k[:, :, j], other_v[:, :, j] = 30, 1e30
        after = attend(q, other_k, other_v, index, backend="auto")
        assert torch.equal((after != before).any(-1), seen[..., j])  # bits, of exactly the rows that see key j


def test_keys_that_no_row_of_a_tile_sees_may_hold_anything():
    q, k, v, given = tensors(LAYOUTS["left"])
    index = build(q, k, given, columns=0.2)
    before = attend(q, k, v, index, **given)
    k[1, :, :71], v[1, :, :71] = torch.nan, torch.nan  # padding
    assert torch.equal(before, attend(q, k, v, index, **given))
    q, k, v, _ = tensors()
    index = build(q, k, {}, columns=0.2)
    before = attend(q, k, v, index)
    k[:, :, 96:], v[:, :, 96:] = torch.nan, torch.nan  # runs of earlier tiles may reach beyond
    assert torch.equal(before[:, :, :96], attend(q, k, v, index)[:, :, :96])
    ptr, start = csr([[[[0], [0, 96], [0], [], []]] * 4] * 2)  # what is whole, and what is not seen at all
    index = SparseIndex(32, 16, ptr, start, torch.ones(2, 4, 5, dtype=torch.int32))
    assert attend(q, k, v, index).isfinite().all()


def test_rows_weigh_one_and_their_log_sum_exp_says_what_they_keep():
    q, k, v, _ = tensors()
    index = build(q, k, {}, columns=0.2, grid=[30, 3, 1])
    out, lse = attend(q, k, torch.ones_like(v), index, return_lse=True)
    some = ~lse.isinf()
    assert (out[some] - 1).abs().max() < 1e-5
    assert (out[~some] == 0).all()
    whole = attend(q, k, v, dense(q, k), return_lse=True)[1]
    assert (lse <= whole + 1e-4).all()
    logits = q @ k.repeat_interleave(2, 1).mT * 0.25
    weights = logits.masked_fill(torch.ones(150, 150).triu(1).bool(), -torch.inf).softmax(-1)
    recall = (weights * seen_by(q, k, index)).sum(-1)
    assert ((lse - whole).exp() - recall).abs().max() < 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
def test_samples_of_a_padded_batch_are_what_they_are_alone(side):
    lengths = [1, 63, 64, 65, 400]
    q, k, v, given = padded(lengths, side)
    out, lse = attend(q, k, v, dense(q, k, **given), return_lse=True, **given)
    for b, n in enumerate(lengths):
        real = slice(0, n) if side == "right" else slice(400 - n, 400)
        assert (out[b, :, real] - causal(q[b, :, real], k[b, :, real], v[b, :, real])).abs().max() < 1e-5
        rest = torch.ones(400, dtype=torch.bool)
        rest[real] = False
        assert (out[b, :, rest] == 0).all()
        assert (lse[b, :, rest] == -torch.inf).all()


@pytest.mark.parametrize("chunk", [100, 256])
def test_a_prompt_in_chunks(chunk):
    q, k, v, _ = tensors({"rows": 500}, batch=1)
    whole = attend(q, k, v, dense(q, k))
    for first in range(0, 500, chunk):
        part, keys, values = q[:, :, first : first + chunk], k[:, :, : first + chunk], v[:, :, : first + chunk]
        out = attend(part, keys, values, dense(part, keys))
        assert (out - whole[:, :, first : first + chunk]).abs().max() < 1e-5


def test_logits_and_products_of_any_size():
    q, k, v, _ = tensors()
    index = build(q, k, {}, columns=0.2)
    same(*both(q * 30, k * 30, v, index), tolerance=2e-3)  # LSEs of thousands
    out = attend(q.half() * 60, k.half() * 600, v.half(), index)  # beyond 65504 before scaling
    exact = attend(q.half().double() * 60, k.half().double() * 600, v.half().double(), index)
    assert out.isfinite().all()
    assert (out - exact).abs().mean() < 1e-3
    for given in ({"scale": 0.5}, {"softcap": 3.0}):
        same(*both(q, k, v, index, **given))


def test_two_runs_are_the_same_bits():
    q, k, v, _ = tensors()
    index = build(q, k, {}, columns=0.2)
    assert torch.equal(attend(q, k, v, index), attend(q, k, v, index))
