"""`paper_compat` of patterns: the rules of released code, written here once more, plainly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity

from tests.support.prefills import LAYOUTS, blocks_of, layer, masked, run, visible
from vlmopt.kernels.patterns.blocks import block_grid, pool_rows
from vlmopt.kernels.patterns.pbs_attn import PBSAttn, key_order, pool_ordered
from vlmopt.kernels.patterns.psa import PSA
from vlmopt.kernels.patterns.x_attention import antidiagonal_share

# ---- PSA


def cap(keys, likeness):
    """The coarsest level whose own mean cosine of first and last key is large enough."""
    level = 1
    for stand, least in zip((2, 4, 8), likeness, strict=True):
        groups = keys.unflatten(0, (-1, stand))
        if float(cosine_similarity(groups[:, 0], groups[:, -1], dim=-1).mean()) > least:
            level = stand
    return level


def released_levels(share, energy, caps, forced):
    """One row of blocks: by the inclusive cumulative share of the sorted row, then the caps, then what is exact."""
    levels, held = [0] * len(share), 0.0
    for n in sorted(range(len(share)), key=lambda n: -share[n]):
        held += share[n]
        levels[n] = next(
            (stand for stand, end in zip((1, 2, 4, 8), energy, strict=True) if held <= end * sum(share)), 0
        )
    return [1 if forced[n] else min(level, caps[n]) for n, level in enumerate(levels)]


@pytest.mark.parametrize("seed", range(6))
def test_psa_ranks_all_blocks_and_asks_each_level_for_its_own_cosine(seed):
    prefill = layer(rows=1280, batch=1, seed=seed, scale=1.0)
    signs = torch.tensor([1.0, -1, -1, 1, 1, 1, 1, 1]).repeat(16)[:, None]  # neighbours apart, ends of 4 and 8 alike
    k = prefill.k.clone()
    k[:, :, 256:384] = k[:, :, 256:257] * signs
    k[:, :, 640:768] = k[:, :, 640:641]
    prefill = replace(prefill, k=k)
    energy, likeness = (0.3, 0.5, 0.7, 0.8), (0.75, 0.7, 0.7)
    pattern = PSA(
        tile=32, run=16, block=128, stride=8, energy=energy, likeness=likeness, exact_tail=0, paper_compat=True
    )
    share, grid = antidiagonal_share(prefill, 32, 128, 8)[0].double(), block_grid(prefill, 32, 128)
    found = pattern.block_levels(prefill)[0]
    for head in range(4):
        caps = [cap(keys, likeness) for keys in k[0, head // 2].split(128)]
        assert (caps[2], caps[5]) == (8, 8)
        for tile in range(share.shape[1]):
            seen = grid.visible[0, 0, tile]
            want = released_levels(share[head, tile].tolist(), energy, caps, grid.forced[0, 0, tile].tolist())
            assert torch.where(seen, found[head, tile], 0).tolist() == torch.where(seen, torch.tensor(want), 0).tolist()
    ours = replace(pattern, paper_compat=False).block_levels(prefill)[0]
    assert not torch.equal(ours, found)


def test_psa_as_released_loses_a_block_that_holds_nearly_everything():
    prefill = layer(rows=640, batch=1, query_heads=2)
    q, k = prefill.q.clone(), prefill.k.clone()
    q[..., 0] = k[:, :, 128:256, 0] = 30
    prefill = replace(prefill, q=q, k=k)
    settings = {"tile": 32, "run": 16, "stride": 8, "energy": (0.7, 0.8, 0.9, 0.9), "exact_tail": 0}
    assert PSA(**settings).block_levels(prefill)[0, 0, -1, 1] == 1
    assert PSA(**settings, paper_compat=True).block_levels(prefill)[0, 0, -1, 1] == 0


# ---- PBS-Attn


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_pbs_attn_adds_the_first_block_to_those_that_reach_the_threshold(seed, threshold):
    prefill = layer(rows=512, batch=1, seed=seed, scale=1.0)
    pattern = PBSAttn(tile=32, run=32, segment=64, probe=32, threshold=threshold, paper_compat=True)
    order = key_order(prefill, 64, 32)
    means = pool_ordered(prefill, order, 64, 32)[:, prefill.key_heads]
    logits = (pool_rows(prefill, 32) @ means.mT * prefill.scale)[0].double()
    keep, ours = blocks_of(prefill, pattern)[0], blocks_of(prefill, replace(pattern, paper_compat=False))[0]
    for head in range(4):
        sink = order[0, head // 2].tolist().index(0) // 32
        for tile in range(16):
            own = tile * 32 // 64
            share = logits[head, tile, : own * 2].softmax(0).tolist()
            chosen, held = {own * 2, own * 2 + 1} | ({sink} if own else set()), 0.0
            for n in sorted(range(len(share)), key=lambda n: -share[n]):
                if held >= threshold:
                    break
                chosen.add(n)
                held += share[n]
            assert set(keep[head, tile].nonzero()[:, 0].tolist()) == {n for n in chosen if n <= tile or n // 2 == own}
    assert (keep | ours).equal(keep)  # never fewer
    assert not keep.equal(ours)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_with_all_of_the_mass_released_rules_are_dense(layout):
    prefill = layer(**LAYOUTS[layout])
    dense = masked(prefill, visible(prefill))
    for pattern in (
        PBSAttn(tile=32, run=32, segment=64, probe=32, threshold=1, paper_compat=True),
        PSA(tile=32, run=16, block=128, energy=(1, 1, 1, 1), likeness=(-1, -1, -1), exact_tail=0, paper_compat=True),
    ):
        assert pattern.is_identity
        assert torch.allclose(run(prefill, pattern.build(prefill)), dense, atol=1e-5)
