"""Plans of several launches, strides, back-ends and their refusals, and what an index must not do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.support.sparse import LAYOUTS, attend, attend_plan, build, call, dense, inputs_of, seen_by, tensors
from vlmopt.kernels.sparse_attention import Keys, Launch, check_index, chosen_backend, native
from vlmopt.kernels.sparse_attention import plan as planning


def masked(q, k, v, mask):
    """Softmax attention and log-sum-exps over a mask Bool[B, Hq, Sq, W], by the book."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1).double() for x in (k, v))
    logits = (q.double() @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
    return (logits.softmax(-1).nan_to_num(0) @ v).float(), logits.logsumexp(-1).float()


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.isinf(), b.isinf())
        assert (a - b).masked_fill(a.isinf(), 0).abs().max() < 1e-5


@pytest.mark.parametrize("layout", ["whole", "chunk", "left", "right"])
@pytest.mark.parametrize("heads", [None, [3, 0]])
def test_launches_of_the_same_rows_are_one_softmax(layout, heads):
    q, k, v, given = tensors(LAYOUTS[layout])
    early = {"k": k[:, :, :60], "v": v[:, :, :60]}  # keys of its own, so that the two sets are disjoint
    real = given.get("k_len", torch.tensor(2 * [k.shape[2]]))
    near = build(q, k, {**given, "key_min": 60}, columns=0.2, seed=1)
    far = build(q, early["k"], {**given, "k_len": real}, columns=0.2, seed=2, heads=heads)
    mask = seen_by(q, k, near, **given, key_min=60)
    of_far = seen_by(q, early["k"], far, **{**given, "k_len": real})
    mask[:, slice(None) if heads is None else heads, :, :60] |= of_far
    plan = [Launch(near, key_min=60), Launch(far, **early)]
    close(attend_plan(q, k, v, plan, return_lse=True, **given), masked(q, k, v, mask))
    close([attend_plan(q, k, v, plan[::-1], **given)], masked(q, k, v, mask)[:1])


def test_rows_of_one_launch_only_are_taken_as_they_are():
    q, k, v, _ = tensors()
    order = torch.randperm(150).int().expand(2, 1, -1)
    index = build(q, k, {}, share=1.0, tile=64, columns=0.3)
    parts = [replace(index, q_order=order.where(torch.arange(150) % 2 == i, -1)) for i in (0, 1)]
    single = [attend_plan(q, k, v, [Launch(p)], return_lse=True) for p in parts]
    out, lse = attend_plan(q, k, v, [Launch(p) for p in parts], return_lse=True)
    assert torch.equal(out, single[0][0] + single[1][0])
    assert torch.equal(lse, torch.maximum(single[0][1], single[1][1]))


def test_launches_of_different_heads_need_no_log_sum_exps(monkeypatch):
    asked = []
    real = planning.sparse_attention
    monkeypatch.setattr(planning, "sparse_attention", lambda *a, **k: asked.append(k["return_lse"]) or real(*a, **k))
    q, k, v, _ = tensors()
    plan = [Launch(build(q, k, {}, heads=[2, 0])), Launch(build(q, k, {}, heads=[3]))]
    out = attend_plan(q, k, v, plan)
    assert asked == [False, False]
    assert torch.equal(out[:, [2, 0]], attend(q, k, v, plan[0].index))
    assert torch.equal(out[:, [3]], attend(q, k, v, plan[1].index))
    out, lse = attend_plan(q, k, v, plan, return_lse=True)
    assert (out[:, 1] == 0).all()  # covered by neither
    assert (lse[:, 1] == -torch.inf).all()
    whole = Launch(build(q, k, {}))
    asked.clear()
    assert torch.equal(attend_plan(q, k, v, [whole]), attend(q, k, v, whole.index))
    assert asked == [False]


@pytest.mark.parametrize("backend", ["gather", "reference"])
def test_a_key_with_a_bias_stands_for_several(backend):
    q, k, v, _ = tensors({"rows": 120, "width": 240}, batch=1)
    k, v = (x[:, :, ::4].repeat_interleave(4, 2) for x in (k, v))  # fours of equal keys
    position = torch.cat([torch.arange(240), torch.arange(3, 240, 4)])[None, None]  # a pool is seen from its last on
    bias = torch.cat([torch.zeros(240), torch.full((60,), 4.0).log()])[None, None]
    own = {"k": torch.cat([k, k[:, :, ::4]], 2), "v": torch.cat([v, v[:, :, ::4]], 2)}
    stand = Keys(position, bias)
    given = {"k_len": torch.tensor([240]), "keys": stand}
    index = build(q, own["k"], given, columns=0.2)
    seen = seen_by(q, own["k"], index, **given)
    mask = seen[..., :240].float() + seen[..., 240:].float().repeat_interleave(4, -1)  # how often each key counts
    logits = q.double() @ k.repeat_interleave(2, 1).double().mT * 0.25 + mask.log()
    expected = (logits.softmax(-1).nan_to_num(0) @ v.repeat_interleave(2, 1).double()).float(), logits.logsumexp(-1)
    close(attend_plan(q, k, v, [Launch(index, keys=stand, **own)], return_lse=True, backend=backend), expected)


@pytest.mark.parametrize("d", [64, 80])
def test_views_and_slices_are_read_where_they_lie(d):
    q, k, v, _ = tensors(d=d)
    index = build(q, k, {}, columns=0.2)
    expected = attend(q, k, v, index)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert torch.equal(attend(*views, index), expected)
    held = [torch.full((3, x.shape[1] + 1, x.shape[2] + 5, d + 8), torch.nan) for x in (q, k, v)]
    slices = [h[1:, 1:, 3:-2, 4:-4].copy_(x) for h, x in zip(held, (q, k, v), strict=True)]
    assert torch.equal(attend(*slices, index), expected)
    with pytest.raises(ValueError, match="unit stride"):
        attend(q.mT.contiguous().mT, k, v, index)


def test_elements_beyond_2_to_the_31():
    far = torch.empty(1, dtype=torch.float16).new_empty(2**31 + 4096)  # never touched, so it costs no memory
    q, k, v, _ = tensors({"rows": 32}, 2, 2, batch=1, dtype=torch.float16)
    index = build(q, k, {})
    views = [far.as_strided(q.shape, (1, 2**31, 16, 1), i * 1024).copy_(x) for i, x in enumerate((q, k, v))]
    assert torch.equal(attend(*views, index), attend(q, k, v, index))


def test_an_index_that_breaks_its_promises_is_refused():
    q, k, _, _ = tensors({"rows": 96}, batch=1)
    good = dense(q, k, 32)
    check_index(*call(q, k, k, good))
    grid = torch.tensor([96, 70, 1], dtype=torch.int32).expand(1, 4, -1)
    order = torch.arange(96, dtype=torch.int32).expand(1, 1, -1)
    for broken, why in (
        ({"run_ptr": good.run_ptr.flip(-1)}, "ascend"),
        ({"run_start": good.run_start - 1}, "must lie in"),
        ({"run_start": good.run_start // 2}, "overlap"),
        ({"run_full": good.run_full + 1}, "does not see all"),
        ({"run_full": good.run_full + 9}, "9 of them full"),
        ({"col_ptr": good.run_ptr, "col_idx": good.run_start + 96}, "must lie in"),
        ({"grid": grid}, "twice"),
        ({"slash": grid[..., :2]}, "slashes"),
        ({"col_ptr": good.run_ptr, "col_idx": good.run_start}, "twice"),
        ({"col_ptr": good.run_ptr, "col_idx": good.run_start.flip(0)}, "must ascend"),
        ({"q_order": order // 2}, "q_order"),
        ({"k_order": order + 1}, "k_order"),
    ):
        with pytest.raises(ValueError, match=why):
            check_index(*call(q, k, k, replace(good, **broken)))


def test_what_does_not_fit_is_refused():
    q, k, v, _ = tensors()
    index = build(q, k, {})
    refused = [
        (lambda: attend(q, k, v, index, backend="fast"), "backend must be one of"),
        (lambda: attend(q, k, v[:, :, 1:], index), r"k and v \[B, Hk, W, D\]"),
        (lambda: attend(q[:, :3], k, v, index), "evenly"),
        (lambda: attend(q[:1], k[:1], v[:1], index), "2 samples"),
        (lambda: attend(q, k, v, replace(index, heads=torch.arange(3))), "4 heads, the call has 2 and 3"),
        (lambda: attend(q[:, :, :90], k, v, index), "make 3 tiles, the index has 5"),
        (lambda: attend(q, k, v, replace(index, grid=torch.zeros(2, 4, 2))), r"grid must be \[2, 4, 3\]"),
        (lambda: attend(q, k, v, index, causal_shift=-1), "causal_shift"),
        (lambda: attend(q, k, v, index, keys=Keys(bias=torch.zeros(2, 2, 9))), "keys.bias must be"),
        (lambda: attend(q.requires_grad_(), k, v, index), "no backward pass"),
    ]
    slash = replace(index, slash=torch.ones(2, 4, 2).int())
    refused += [
        (lambda: attend(q, k, v, slash, keys=Keys(torch.zeros(2, 1, 150).long())), "slash needs"),
        (lambda: attend(q, k, v, index, backend="flex"), "multiples of 16"),
        (lambda: attend(q, k, v, slash, backend="flex"), "not slash"),
        (lambda: attend(q, k, v, dense(q, k), backend="flex", return_lse=True), "no log-sum-exp on CPU"),
        (lambda: attend(q, k, v, dense(q, k), backend="flex", softcap=3.0), "softcap"),
    ]
    for refuse, why in refused:
        with pytest.raises(ValueError, match=why):
            refuse()


def test_the_chosen_backend_is_named():
    q, k, v, _ = tensors()
    launch, inputs = Launch(build(q, k, {})), inputs_of(q, k, v)
    assert chosen_backend(inputs, [launch]) == chosen_backend(inputs, [launch, launch])
    assert chosen_backend(inputs, [launch]) == ("gather" if native.refusal(inputs, launch) else "native")
    halves = inputs_of(q.half(), k.half(), v.half())
    assert chosen_backend(halves, [launch]) == "gather"
    with pytest.raises(ValueError, match="native computes float32 and bfloat16"):
        attend(q.half(), k.half(), v.half(), launch.index, backend="native")
    with pytest.raises(ValueError, match=r"the same for q, k and v, got torch\.bfloat16, torch\.float32"):
        attend(q, k, v.bfloat16(), launch.index, backend="native")
    assert chosen_backend(inputs, [launch], "flex") == "flex"


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["whole", "chunk", "right", "left"])
def test_flex_is_the_same(layout):
    q, k, v, given = tensors(LAYOUTS[layout], d=64)
    index = build(q, k, given, aligned=True, tile=32, run=32)
    out, expected = (attend(q, k, v, index, backend=b, **given) for b in ("flex", "reference"))
    assert (out - expected).abs().max() < 1e-5
    if layout == "whole":
        out = attend(q, k, v, dense(q, k), backend="flex")
        assert (out - scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)).abs().max() < 1e-5
