"""Patterns that rearrange keys: PBS-Attn sorts them inside segments, PSA reads some of them as means."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.prefills import LAYOUTS, blocks_of, layer, mask_of, run, visible
from vlmopt.kernels.patterns.pbs_attn import PBSAttn, key_order, pool_ordered
from vlmopt.kernels.patterns.psa import PSA, coarsest_level, pyramid, stands_for
from vlmopt.kernels.patterns.x_attention import XAttention

SIZE = {"tile": 32, "run": 32}


def test_pbs_orders_keys_by_importance_inside_whole_segments():
    prefill = layer(rows=300)
    order = key_order(prefill, 64, 32)
    assert torch.equal(order.sort(-1).values, torch.arange(300).expand(2, 2, 300))
    assert torch.equal(order // 64, (torch.arange(300) // 64).expand(2, 2, 300))
    assert torch.equal(order[..., 256:], torch.arange(256, 300).expand(2, 2, 44))
    logits = prefill.q[:, :, -32:] @ prefill.k[:, prefill.key_heads].mT * prefill.scale
    causal = torch.arange(300) <= torch.arange(268, 300)[:, None]
    seen = causal & (torch.arange(300) >= 4)  # the sink is not part of it, and keeps its place
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1).mean(2).unflatten(1, (2, 2)).mean(2)
    assert torch.equal(order[..., :4], torch.arange(4).expand(2, 2, 4))
    weights[..., :4] = 1
    sorted_weights = weights.gather(-1, order)[..., :256].unflatten(-1, (4, 64))
    assert (sorted_weights.diff(dim=-1) <= 1e-7).all()


@pytest.mark.parametrize("layout", ["whole", "chunk", "left", "right"])
def test_pbs_means_are_those_of_the_keys_in_their_new_order(layout):
    prefill = layer(**LAYOUTS[layout])
    order = key_order(prefill, 64, 32)
    real = (torch.arange(prefill.width) < prefill.key_end[:, None]) & (
        torch.arange(prefill.width) >= prefill.key_first[:, None] + 4
    )
    moved = real[:, None].expand_as(order).gather(-1, order)
    keys = prefill.k.take_along_dim(order[..., None], 2) * moved[..., None]
    whole = prefill.width // 64 * 64
    sums, counts = (x[:, :, :whole].unflatten(2, (-1, 32)).sum(3) for x in (keys, moved))
    means = pool_ordered(prefill, order, 64, 32)
    assert torch.allclose(means[:, :, : whole // 32], sums / counts.clamp_min(1)[..., None], atol=1e-5)
    assert (means[:, :, whole // 32 :] == 0).all()
    assert means.shape[2] == -(-prefill.width // 32)


def test_pbs_in_order_of_importance_needs_fewer_blocks():
    """Important keys lie 32 apart: every block of 32 holds one, unless a segment of 256 is sorted."""
    prefill = layer(rows=1024, batch=1, scale=1)
    q, k = prefill.q.clone(), prefill.k.clone()
    q[..., 0] = k[..., ::32, 0] = 6
    prefill = replace(prefill, q=q, k=k)
    sorted_, as_is = (PBSAttn(threshold=0.9, segment=n, probe=64, **SIZE) for n in (256, 32))
    blocks = [float(p.build(prefill)[0].index.run_ptr.diff().sum()) for p in (sorted_, as_is)]
    assert blocks[0] < 0.75 * blocks[1]
    mask = mask_of(prefill, sorted_.build(prefill)[0])
    dense = prefill.q @ prefill.k[:, prefill.key_heads].mT * prefill.scale
    dense = dense.masked_fill(~visible(prefill), -torch.inf).softmax(-1)
    assert (dense * mask).sum(-1).mean() > 0.9


def test_psa_with_level_one_alone_is_a_choice_of_blocks():
    prefill = layer(rows=400)
    pooled = PSA(tile=32, run=16, block=32, stride=8, energy=(0.6,) * 4, exact_tail=0)
    plain = XAttention(tile=32, run=32, stride=8, threshold=0.6)
    assert pooled.levels == (1,)
    assert torch.equal(pooled.block_levels(prefill) == 1, blocks_of(prefill, plain))
    assert torch.allclose(run(prefill, pooled.build(prefill)), run(prefill, plain.build(prefill)), atol=1e-5)


@pytest.mark.parametrize("layout", ["whole", "chunk", "left", "right"])
def test_psa_equals_attention_over_means_by_hand(layout):
    prefill = layer(**{**LAYOUTS[layout], "width": 900}) if layout == "chunk" else layer(**LAYOUTS[layout])
    pattern = PSA(tile=32, run=16, block=128, stride=8, energy=(0.2, 0.4, 0.6, 0.8), likeness=(-1,) * 3, exact_tail=0)
    levels = pattern.block_levels(prefill)
    assert levels.max() > 1
    if layout == "chunk":
        assert set(levels.unique().tolist()) == {0, 1, 2, 4, 8}
    out = run(prefill, pattern.build(prefill))
    for b, h in ((0, 0), (0, 3), (1, 2)):
        q, k, v = prefill.q[b, h], prefill.k[b, h // 2], prefill.v[b, h // 2]
        for row in range(0, prefill.rows, 11):
            if not prefill.real[b, row]:
                assert (out[b, h, row] == 0).all()
                continue
            logits, values = [], []
            for n in range(levels.shape[-1]):
                level = int(levels[b, h, row // 32, n])
                for start in range(n * 128, min(n * 128 + 128, prefill.width), level) if level else ():
                    last = start + level - 1
                    if prefill.key_first[b] <= last <= prefill.position[b, row]:
                        group = slice(start, start + level)
                        logits.append(q[row] @ k[group].mean(0) * prefill.scale + torch.tensor(level).log())
                        values.append(v[group].mean(0))
            expected = torch.stack(logits).softmax(0) @ torch.stack(values)
            assert torch.allclose(out[b, h, row], expected, atol=1e-4)


def test_psa_pools_only_what_is_alike_and_keeps_a_block_that_holds_everything():
    prefill = layer(rows=640, batch=1, query_heads=2)
    k = prefill.k.clone()
    k[:, 0, 128:256] = k[:, 0, 128:129]  # alike at every level
    signs = torch.tensor([1.0, -1, -1, 1, 1, 1, 1, 1]).repeat(16)[:, None]  # neighbours apart, ends of 4 and 8 alike
    k[:, 0, 256:384] = k[:, 0, 256:257] * signs
    k[:, 0, 384:512] = k[:, 0, 384:448].repeat_interleave(2, 1)  # alike in pairs
    prefill = replace(prefill, k=k)
    loose = PSA(tile=32, run=16, energy=(0.01, 0.02, 0.03, 1), likeness=(0.5, 0.5, 0.5), exact_tail=0, stride=8)
    assert coarsest_level(prefill, 128, {2: 0.5, 4: 0.5, 8: 0.5})[0, 0].tolist() == [1, 8, 1, 2, 1]
    assert loose.block_levels(prefill)[0, 0, -1].tolist() == [1, 8, 1, 2, 1]
    assert replace(loose, exact_tail=1).block_levels(prefill)[0, 0, -1].tolist() == [1] * 5
    assert replace(loose, energy=(0.02, 0.02, 0.03, 0.03)).levels == (1, 4)
    q = prefill.q.clone()
    q[..., 0] = k[:, :, 128:256, 0] = 30  # one block holds nearly all
    levels = replace(loose, energy=(0.5,) * 4).block_levels(replace(prefill, q=q))
    assert levels[0, 0, -1].tolist() == [1, 1, 0, 0, 1]


def test_a_pooled_key_stands_at_its_last_constituent():
    position, bias = stands_for(16, (1, 4), torch.device("cpu"))
    assert position.tolist() == [*range(16), 3, 7, 11, 15]
    assert torch.allclose(bias, torch.tensor([1.0] * 16 + [4.0] * 4).log())
    x = torch.randn(1, 1, 13, 2)
    pooled = pyramid(x, (1, 4), 16)
    assert torch.equal(pooled[:, :, :13], x)
    assert torch.allclose(pooled[:, :, 16:19], x[:, :, :12].unflatten(2, (3, 4)).mean(3))
    assert pooled.shape[2] == 20
