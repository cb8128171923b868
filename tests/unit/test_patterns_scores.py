"""Scores of blocks and the rules that turn them into blocks: MInference, XAttention, FlexPrefill, ProxyAttn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.prefills import LAYOUTS, blocks_of, layer, topics
from vlmopt.kernels.patterns.blocks import block_grid, by_mass, pool, pool_keys, pool_rows
from vlmopt.kernels.patterns.flex_prefill import FlexPrefill, at_distance, by_distance, jensen_shannon
from vlmopt.kernels.patterns.minference_blocks import MInferenceBlocks
from vlmopt.kernels.patterns.pbs_attn import PBSAttn
from vlmopt.kernels.patterns.proxy_attn import ProxyAttn, proxy_scores
from vlmopt.kernels.patterns.x_attention import XAttention, antidiagonal_share

SIZE = {"tile": 32, "run": 32}


def test_minference_keeps_the_best_blocks_within_its_budget():
    prefill = layer(rows=512)
    keep = blocks_of(prefill, MInferenceBlocks(blocks=4, **SIZE))
    tile = torch.arange(16)
    assert torch.equal(keep.sum(-1), (tile + 1).clamp_max(4).expand(2, 4, 16))
    scores = (
        prefill.q.unflatten(2, (16, 32)).mean(3) @ prefill.k.unflatten(2, (16, 32)).mean(3)[:, prefill.key_heads].mT
    )
    free = (tile < tile[:, None]) & (tile > 0)  # neither sink nor diagonal
    worst_kept = scores.masked_fill(~(keep & free), torch.inf).amin(-1)
    best_left = scores.masked_fill(keep | ~free, -torch.inf).amax(-1)
    assert (worst_kept >= best_left).all()


def test_means_leave_padding_out():
    x = torch.randn(2, 3, 70, 5)
    real = torch.rand(2, 70) < 0.6
    real[1, 32:64] = False
    means = pool(x.masked_fill(~real[:, None, :, None], torch.nan), real, 32)
    for b in range(2):
        for n in range(3):
            part = slice(32 * n, 32 * n + 32)
            expected = x[b, :, part][:, real[b, part]].sum(1) / max(1, int(real[b, part].sum()))
            assert torch.allclose(means[b, :, n], expected, atol=1e-6)


@pytest.mark.parametrize("layout", ["whole", "chunk", "left", "right"])
def test_antidiagonal_scores_equal_a_loop_over_cells(layout):
    short = {"q_len": torch.tensor([70, 33]), "k_len": torch.tensor([70, 33])} if layout == "right" else LAYOUTS[layout]
    prefill, t, size = layer(**{"rows": 70, **short}, query_heads=2), 4, 32
    share = antidiagonal_share(prefill, size, size, t)
    rows, keys = -(-prefill.rows // size) * size, -(-prefill.width // size) * size
    for b in range(2):
        expected = torch.zeros(2, rows // t, keys // t)
        first, end, offset = (int(x[b]) for x in (prefill.key_first, prefill.key_end, prefill.offset))
        real_row = [r for r in range(prefill.rows) if prefill.real[b, r]]
        for i in range(rows // t):
            mine = [r for r in range(i * t, i * t + t) if r in real_row]
            if not mine:
                continue
            logits = torch.full((2, keys // t), -torch.inf)
            for j in range(keys // t):
                if j * t > mine[-1] + offset or j * t >= end or j * t < first + 4:  # keys of the sink
                    continue
                total = torch.zeros(2)
                for u in range(t):
                    r, c = i * t + t - 1 - u, j * t + u
                    if r in mine and first <= c < end:
                        total += (prefill.q[b, :, r] * prefill.k[b, :, c]).sum(-1)
                logits[:, j] = total * prefill.scale / t
            expected[:, i] = logits.softmax(-1).nan_to_num(0)
        block = expected.unflatten(2, (-1, size // t)).sum(3).unflatten(1, (-1, size // t)).sum(2)
        block = block / block.sum(-1, keepdim=True).clamp_min(1e-30)
        assert torch.allclose(share[b], block, atol=1e-5)


def test_all_of_the_mass_is_every_block_even_without_a_share():
    share = torch.tensor([[[[0.5, 0.5, 0.0, 0.0]]]])
    visible = torch.tensor([True, True, True, False])
    assert by_mass(share, 1.0, visible, visible & False).flatten().tolist() == [True, True, True, False]
    assert by_mass(share, 0.99, visible, visible & False).flatten().tolist() == [True, True, False, False]
    assert by_mass(share, 0.4, visible, torch.arange(4) == 2).flatten().tolist() == [True, False, True, False]


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
def test_xattention_keeps_the_smallest_set_that_reaches_the_threshold(threshold):
    prefill = layer(rows=512)
    share = antidiagonal_share(prefill, 32, 32, 8)
    keep = blocks_of(prefill, XAttention(threshold=threshold, stride=8, **SIZE))
    forced = block_grid(prefill, 32, 32).forced
    held = share.masked_fill(~keep, 0).sum(-1)
    assert (held >= threshold - 1e-5).all()
    lightest = share.masked_fill(~keep | forced, torch.inf).amin(-1)
    assert ((held - lightest < threshold + 1e-5) | lightest.isinf()).all()


def test_blocks_of_the_same_topic_are_found():
    prefill, of = topics()
    same = of[::64, None] == of[None, ::64]
    same &= torch.ones(16, 16, dtype=torch.bool).tril()
    found = {
        MInferenceBlocks(tile=64, run=64, blocks=5): 0.99,
        XAttention(tile=64, run=64, stride=16, threshold=0.8): 0.99,
        ProxyAttn(tile=64, run=64, coverage=0.95, min_budget=256): 0.99,  # else the last rows set it
        PBSAttn(tile=64, run=64, segment=128, threshold=0.8): 0.99,
        FlexPrefill(tile=64, run=64, coverage=0.95, divergence=1, min_budget=64): 0.95,  # one pool of rows
    }
    for pattern, least in found.items():
        keep = blocks_of(prefill, pattern)[0]
        assert keep[:, same].float().mean() >= least, pattern
        assert keep.sum() / (4 * 136) < 0.75, pattern


def test_flexprefill_covers_both_blocks_that_a_slash_crosses():
    offset = 3 * 32 + 16  # half of the rows of a block find it three blocks back, half of them four
    mass = torch.zeros(1, 1, 512)
    mass[..., offset] = 1
    share = by_distance(mass, 32)[0, 0]
    assert share.nonzero().flatten().tolist() == [3, 4]
    assert torch.allclose(share[3:5], torch.tensor([0.5, 0.5]))
    prefill = layer(rows=512, batch=1, query_heads=1, key_heads=1)
    keep = at_distance((share > 0)[None, None], prefill, 32, 32)[0, 0]
    for row in range(offset, 512):
        assert keep[row // 32, (row - offset) // 32]
    assert keep.sum() == 13 + 12


@pytest.mark.parametrize("tile", [16, 32, 128])
def test_distances_hold_for_chunks_and_any_tile(tile):
    prefill = layer(rows=150, width=333, batch=1)
    bands = torch.zeros(1, 4, 12, dtype=torch.bool)
    bands[..., [0, 3]] = True
    keep = at_distance(bands, prefill, tile, 32)[0, 0]
    expected = torch.zeros_like(keep)
    for row in range(150):
        for distance in (0, 3):
            expected[row // tile, (row + 183) // 32 - distance] = True
    assert torch.equal(keep, expected)


def test_flexprefill_keeps_the_coverage_of_its_estimates():
    prefill, gamma = layer(rows=512), 0.7
    lines = FlexPrefill(coverage=gamma, divergence=0, min_budget=32, probe=64, **SIZE)
    keep = blocks_of(prefill, lines)
    vertical, slash, _, seen = lines.last_rows(prefill)
    assert seen[0, 0].tolist() == [64 * 28] + [64 * 32] * 13 + [32 * 33 / 2 + 32 * 32, 32 * 33 / 2]
    for mass in (vertical, slash):
        assert torch.allclose(mass.sum(-1), torch.ones(2, 4))
    tiles = torch.arange(16)
    distance = tiles[:, None] - tiles
    for mass, line in ((vertical, tiles.expand(16, 16)), (slash[..., :-1], distance)):
        whole = torch.stack([(keep | (line != n) | (distance < 0)).flatten(2).all(-1) for n in range(16)], -1)
        assert ((mass * whole).sum(-1) >= gamma - 1e-5).all()  # on lines of blocks that are kept from end to end
    share = pool_rows(prefill, 32) @ pool_keys(prefill, 32)[:, prefill.key_heads].mT * prefill.scale
    share = share.masked_fill(~torch.ones(16, 16, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
    everywhere = blocks_of(prefill, replace(lines, divergence=1))
    assert ((share * everywhere).sum((-2, -1)) >= gamma * 16 - 1e-4).all()
    assert not torch.equal(keep, everywhere)


def test_flexprefill_tells_heads_apart():
    """Head 0 looks at a whole block, which means over blocks predict; head 1 at single keys, which they do not."""
    prefill = layer(rows=1024, batch=1, query_heads=2, d=64, scale=1)
    q, k = prefill.q.clone(), prefill.k.clone()
    q[..., 0], k[:, 0, 256:320, 0], k[:, 1, ::100, 0] = 9, 9, 9
    prefill = replace(prefill, q=q, k=k)
    vertical, _, mean, seen = FlexPrefill(tile=64, run=64).last_rows(prefill)
    means = (mean @ pool_keys(prefill, 64).mT * prefill.scale)[:, :, 0]
    distance = jensen_shannon((means + seen.log()).softmax(-1), vertical)[0]
    assert distance[0] < 0.1 < distance[1]
    lines, rows = (FlexPrefill(tile=64, run=64, divergence=d, coverage=0.9, min_budget=64) for d in (0, 0.1))
    same = (blocks_of(prefill, lines) == blocks_of(prefill, rows)).flatten(2).all(-1)[0]
    assert same.tolist() == [False, True]


def test_flexprefill_does_not_blame_means_for_the_causal_limit():
    prefill, _ = topics(rows=2048)  # the last rows look at their own topic, part of it in their own block
    pattern = FlexPrefill(tile=64, run=64, min_budget=64)
    lines = replace(pattern, divergence=0)
    differ = (blocks_of(prefill, pattern) != blocks_of(prefill, lines)).flatten(2).any(-1)
    assert differ.all()  # so all heads are query-aware


def test_jensen_shannon_between_known_distributions():
    same, other = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    assert jensen_shannon(same, same) == 0
    assert torch.allclose(jensen_shannon(same, other), torch.tensor(2.0).log().sqrt())


def test_proxy_scores_equal_the_attention_of_the_mean_head():
    prefill = layer(rows=128, query_heads=4, key_heads=2)
    for groups in (1, 2):
        q = prefill.q.unflatten(1, (groups, -1)).mean(2)[:, :, ::4]
        k = prefill.k.unflatten(1, (groups, -1)).mean(2)[:, :, ::4]
        rest = torch.ones(32, 32, dtype=torch.bool).tril() & (torch.arange(32) > 0)  # without the sink, keys 0 to 3
        weights = (q @ k.mT * prefill.scale).masked_fill(~rest, -torch.inf).softmax(-1).nan_to_num(0)
        largest = weights.unflatten(3, (4, 8)).unflatten(2, (4, 8)).amax((3, 5))
        assert torch.allclose(proxy_scores(prefill, 32, 32, 4, groups), largest, atol=1e-6)
    with pytest.raises(ValueError, match="groups must divide the 2 key heads, got 3"):
        ProxyAttn(groups=3).build(prefill)


def test_a_head_of_proxyattn_keeps_as_many_blocks_as_its_last_rows_need():
    prefill = layer(rows=512, batch=1, key_heads=4)
    q = prefill.q.clone()
    q[:, 0] = 0  # needs everything
    q[:, 1] *= 8  # needs little
    prefill = replace(prefill, q=q)
    keep = blocks_of(prefill, ProxyAttn(coverage=0.9, min_budget=32, **SIZE))[0]
    count = keep.sum(-1)
    rest = torch.ones(512, 512, dtype=torch.bool).tril()[-32:] & (torch.arange(512) >= 4)
    for h in range(4):
        weights = (q[0, h, -32:] @ prefill.k[0, h].T * prefill.scale).masked_fill(~rest, -torch.inf).softmax(-1)
        blocks = weights.mean(0).view(16, 32).sum(1)
        others = blocks[1:].sort(descending=True).values.cumsum(0)  # beside the sink's, which is kept in any case
        needed = int((blocks[0] + others < 0.9).sum()) + 2
        tile = torch.arange(1, 17)
        assert torch.equal(count[h], torch.maximum(-(-needed * tile // 16), tile.clamp_max(2)))
    assert count[0, -1] > count[1, -1]
