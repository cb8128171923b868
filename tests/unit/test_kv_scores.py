"""Which keys stay after the prompt: golden numbers of every score and budget, and what is chosen by them."""

from __future__ import annotations

import pytest
import torch

from vlmopt import kv
from vlmopt.kv.mix_kv import mixed, redundancy
from vlmopt.kv.pooling import neighbours, pool_sequence

METHODS = {
    "snap_kv": kv.SnapKV(),
    "snap_kv sequence": kv.SnapKV(pooling="sequence"),
    "snap_kv mixed": kv.SnapKV(mix=True),
    "vl_cache": kv.VLCache(),
    "vl_cache mixed": kv.VLCache(mix=True),
    "key_diff": kv.KeyDiff(),
    "random_kv": kv.RandomKV(),
}


def probe(weights, visible, rows=None):
    """Of one sample: weights [H][R][n], and how many of the first keys each row sees."""
    weights = torch.tensor(weights)[None]
    sees = torch.arange(weights.shape[-1]) < torch.tensor(visible)[:, None]
    rows = torch.ones(1, len(visible), dtype=torch.bool) if rows is None else torch.tensor(rows)[None]
    return kv.Probe(weights, rows, sees[None, None])


def view(keys, values=None, real=None, weights=None, start=None, layer=0, seed=0, **rest):
    """Keys [B, Hk, n, D]; every row of `weights` [B, H, R, n] sees everything."""
    batch, _, n, _ = keys.shape
    real = torch.ones(batch, 1, n, dtype=torch.bool) if real is None else real
    start = torch.zeros(batch, dtype=torch.long) if start is None else start
    if weights is not None:
        rows = torch.ones(batch, weights.shape[2], dtype=torch.bool)
        rest["probe"] = kv.Probe(weights, rows, real[:, :, None].expand(-1, -1, weights.shape[2], -1))
    places = torch.arange(n) - start[:, None, None]
    return kv.KVView(keys, torch.zeros_like(keys) if values is None else values, real, places, layer, seed, **rest)


def random_view(batch=2, heads=2, group=2, n=24, pads=(0, 5), rows=6):
    generator = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(batch, heads, n, 8, generator=generator) for _ in range(2))
    start = torch.tensor(pads)
    real = torch.arange(n) >= start[:, None, None]
    weights = torch.rand(batch, heads * group, rows, n, generator=generator) * real[:, :, None]
    return view(keys, values, real, weights / weights.sum(-1, keepdim=True), start)


# ---- golden numbers


def test_pooling_along_the_sequence_counts_what_lies_beyond_the_ends_as_nothing():
    pooled = pool_sequence(torch.tensor([[[0, 0.1, 0.5, 0.1, 0, 0.3]]]), 3)
    assert torch.allclose(pooled, torch.tensor([0.033333, 0.2, 0.233333, 0.2, 0.133333, 0.1]), atol=1e-5)


def test_sparsity_and_importance_of_vl_cache():
    rows = [[[0.6, 0.3, 0.05, 0.05, 0, 0], [0.5, 0.002, 0.448, 0.03, 0.02, 0], [0.1, 0.001, 0.7, 0.15, 0.02, 0.029]]]
    found = probe(rows, [4, 5, 6])
    assert kv.sparsity(found).item() == pytest.approx(2 / 15, abs=1e-6)
    keys = torch.randn(1, 1, 6, 4)
    scores = kv.VLCache().score(view(keys, probe=found))
    assert torch.allclose(scores, torch.tensor([[[1.2, 0.303, 1.198, 0.23, 0.04, 0.029]]]))


def test_rows_that_do_not_count_count_nowhere():
    rows = [[[0.6, 0.3, 0.05, 0.05], [0.25, 0.25, 0.25, 0.25]]]
    found = probe(rows, [4, 4], rows=[False, True])
    assert kv.sparsity(found).item() == 0
    for method in (kv.VLCache(), kv.SnapKV(pooling="none")):
        assert torch.allclose(method.score(view(torch.randn(1, 1, 4, 4), probe=found)), torch.tensor(0.25))


@pytest.mark.parametrize("method", [kv.VLCache(), kv.SnapKV()])
def test_attention_that_nobody_asked_for_is_not_there(method):
    with pytest.raises(ValueError, match="let its `rows` say"):
        method.score(view(torch.randn(1, 1, 4, 4)))


def test_adaptive_budgets_keep_the_mean():
    raw = [0.8 / 1.31 * 0.4, 0.4 / 1.31 * 0.4, 0.1 / 1.31 * 0.4, 0.01 / 1.31 * 0.4]
    assert raw == pytest.approx([0.244275, 0.122137, 0.030534, 0.003053], abs=1e-6)  # the last is below a hundredth
    shares = kv.adaptive([0.2, 0.6, 0.9, 0.99], 0.1)
    assert shares == pytest.approx([0.24, 0.12, 0.03, 0.01])
    assert kv.adaptive([0.0, 0.99, 0.99, 0.99], 0.5) == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])  # no more than all
    assert kv.adaptive([1.0, 1.0], 0.3) == pytest.approx([0.3, 0.3])
    assert kv.adaptive([0.2, 1.0], 0.004) == pytest.approx([0.004, 0.004])


def test_adaptive_budgets_of_a_later_turn_keep_the_mean():
    """What a layer has no more of goes to those that have it; a budget that is met evicts nothing."""
    shares = kv.adaptive([0.2, 0.6, 0.9, 0.99], 0.1, [0.1, 1, 1, 1])
    assert shares == pytest.approx([0.1, 0.29 * 0.8, 0.29 * 0.2, 0.01])
    assert kv.adaptive([0.9, 0.2, 0.5], 0.1, [0.24, 0.05, 0.01]) == pytest.approx([0.24, 0.05, 0.01])
    assert kv.adaptive([0.9, 0.2], 0.5, [0.0, 0.3]) == pytest.approx([0.0, 0.3])  # less than the budget is left


@pytest.mark.parametrize(
    ("n", "ratio", "depth", "first", "last"),
    [(4096, 0.5, 28, [3994, 3849], 102), (8192, 0.25, 32, [3994, 3868], 102), (4096, 0.1, 28, [410, 410], 410)],
)
def test_pyramid(n, ratio, depth, first, last):
    counts = [kv.kept(n, share) for share in kv.pyramid(n, ratio, depth, 32)]
    assert counts[:2] == first
    assert counts[-1] == last
    assert sum(counts) / depth == pytest.approx(n * ratio, abs=1)
    assert counts == sorted(counts, reverse=True)


def test_pyramid_never_keeps_more_than_all():
    shares = kv.pyramid(1000, 0.8, 5, 32)
    assert shares[0] == 1
    assert sum(shares) / 5 == pytest.approx(0.8)


def test_redundancy_is_the_mean_cosine_of_pairs():
    keys = torch.tensor([[[[1.0, 0], [1, 0.1], [0, 1], [-1, 0]]]])
    found = redundancy(view(keys)).item()
    unit = torch.nn.functional.normalize(keys[0, 0], dim=-1)
    cosines = unit @ unit.T
    assert found == pytest.approx(-0.150083, abs=1e-6)
    assert found == pytest.approx(((cosines.sum() - 4) / 12).item(), abs=1e-6)


def test_mix_of_a_head_with_unlike_keys_is_importance_and_value_norms():
    keys = torch.tensor([[[[1.0, 0], [1, 0.1], [0, 1], [-1, 0]]]])
    values = torch.tensor([[[[1.0, 0], [2, 0], [3, 0], [2, 0]]]])
    importance = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])  # mean 0.25; norms 0 .5 1 .5 have mean 0.5
    assert torch.allclose(mixed(view(keys, values), importance), importance + torch.tensor([0, 0.25, 0.5, 0.25]))


def test_mix_of_equal_keys_is_diversity():
    keys = torch.ones(1, 1, 4, 2)
    scores = mixed(view(keys, torch.ones_like(keys)), torch.tensor([[[0.1, 0.2, 0.3, 0.4]]]))
    assert torch.allclose(scores, torch.zeros(4), atol=1e-6)


def test_key_diff_prefers_what_is_unlike_the_rest():
    keys = torch.tensor([[[[1.0, 0], [2, 0.1], [0, 1], [1, -0.1]]]])
    assert kv.KeyDiff().score(view(keys))[0, 0].argmax() == 2
    mean = torch.nn.functional.normalize(keys, dim=-1).mean(2)
    expected = -torch.nn.functional.cosine_similarity(keys, mean[:, :, None], dim=-1)
    assert torch.allclose(kv.KeyDiff().score(view(keys)), expected)


def test_neighbours_on_the_grid():
    """Two images of 2 x 2 and a text key between; cells of one image never touch the other's."""
    item = torch.tensor([[[0, 0, 0, 0, -1, 1, 1, 1]]])
    t = torch.tensor([[[0, 0, 0, 0, -1, 0, 0, 0]]])
    y = torch.tensor([[[0, 0, 1, 1, -1, 0, 0, 1]]])
    x = torch.tensor([[[0, 1, 0, 1, -1, 0, 1, 1]]])
    found = neighbours(item, t, y, x)[0, 0]
    sets = [sorted(set(row.tolist()) - {-1}) for row in found]
    assert sets == [[0, 1, 2, 3]] * 4 + [[]] + [[5, 6, 7]] * 3


def test_neighbours_lie_in_one_frame_and_one_cell_away():
    y, x = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    y, x = (axis.flatten().repeat(2)[None, None] for axis in (y, x))
    t = torch.arange(2).repeat_interleave(16)[None, None]
    found = neighbours(torch.zeros_like(t), t, y, x)[0, 0]
    near = (y[0, 0, :, None] - y).abs().le(1) & (x[0, 0, :, None] - x).abs().le(1) & (t[0, 0, :, None] == t)
    for slot in range(32):
        assert sorted(set(found[slot].tolist()) - {-1}) == near[0, slot].nonzero()[:, 0].tolist()


def test_snap_kv_smooths_over_the_patches_around():
    """A peak in one patch lifts its eight neighbours alike, also the one a row of patches away."""
    y, x = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
    axes = [axis.flatten()[None, None] for axis in (torch.zeros_like(y), torch.zeros_like(y), y, x)]
    weights = torch.zeros(1, 1, 1, 25)
    weights[..., 12] = 1  # the middle
    found = kv.SnapKV().score(view(torch.randn(1, 1, 25, 4), weights=weights, neighbours=neighbours(*axes)))
    grid = found.view(5, 5)
    assert torch.allclose(grid[1:4, 1:4], torch.tensor(1 / 9))
    assert grid.count_nonzero() == 9


# ---- what holds for every score


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_sample_scores_alike_alone_and_padded(method):
    both = random_view()
    scores = method.score(both)
    assert scores.dtype == torch.float32
    assert scores.shape == (2, 2, 24)
    pads = 5
    alone = view(
        both.keys[1:, :, pads:], both.values[1:, :, pads:], weights=both.probe.weights[1:, :, :, pads:], seed=both.seed
    )
    assert torch.allclose(method.score(alone), scores[1:, :, pads:], atol=1e-6)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_scores_are_made_in_single_precision(method):
    given = random_view()
    low = kv.KVView(given.keys.bfloat16(), given.values.bfloat16(), *list(vars(given).values())[2:])
    assert method.score(low).dtype == torch.float32


def test_lots_depend_on_seed_layer_and_head_alone():
    keys = torch.zeros(2, 3, 40, 2)
    first = kv.RandomKV().score(view(keys))
    assert torch.equal(first[0], first[1])
    assert torch.equal(first, kv.RandomKV().score(view(keys + 1)))
    assert not torch.equal(first[0, 0], first[0, 1])
    assert not torch.equal(first, kv.RandomKV().score(view(keys, layer=1)))
    assert not torch.equal(first, kv.RandomKV().score(view(keys, seed=1)))
    longer = kv.RandomKV().score(view(torch.zeros(2, 3, 1000, 2)))
    assert torch.equal(longer[..., :40], first)


# ---- the choice


def test_what_is_protected_stays_and_ties_go_to_the_lowest_slot():
    scores = torch.tensor([[[1.0, 5, 5, 5, 0, 9], [1, 2, 3, 4, 0, 9]]])
    protected = torch.tensor([[[False] * 4 + [True, False]]])
    real = torch.tensor([[[True] * 5 + [False]]])  # the best score of all is padding
    index, valid = kv.choose(scores, protected, real, torch.tensor([3]))
    assert index.tolist() == [[[1, 2, 4], [2, 3, 4]]]
    assert valid is None


def test_samples_with_fewer_keys_are_filled_up_on_the_left():
    scores = torch.arange(12.0).view(2, 1, 6)
    none, real = torch.zeros(2, 1, 6, dtype=torch.bool), torch.ones(2, 1, 6, dtype=torch.bool)
    index, valid = kv.choose(scores, none, real, torch.tensor([2, 4]))
    assert valid.tolist() == [[False, False, True, True], [True] * 4]
    assert index[0, 0, 2:].tolist() == [4, 5]
    assert index[1].tolist() == [[2, 3, 4, 5]]
    assert index[0, 0].unique().numel() == 4


def test_scores_that_are_no_numbers_choose_no_padding():
    scores = torch.tensor([[[float("nan"), 1, float("nan")]]])
    real = torch.tensor([[[True, True, False]]])
    index, _ = kv.choose(scores, torch.zeros_like(real), real, torch.tensor([2]))
    assert index.tolist() == [[[0, 1]]]


# ---- settings


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: kv.SnapKV(keep_ratio=0), "keep_ratio must be a number > 0 and <= 1"),
        (lambda: kv.SnapKV(kernel=4), "kernel must be odd"),
        (lambda: kv.SnapKV(pooling="2d"), "pooling must be one of grid, sequence, none"),
        (lambda: kv.KeyDiff(layer_budgets="adaptive"), "reads none; use 'even' or 'pyramid'"),
        (lambda: kv.RandomKV(layer_budgets="falling"), "layer_budgets must be one of even, pyramid, adaptive"),
        (lambda: kv.VLCache(recent=0), "recent must be a whole number >= 1"),
        (lambda: kv.VLCache(protect="image"), "protect must be one of text, ends"),
    ],
)
def test_settings_that_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_keeping_everything_is_no_eviction():
    assert kv.SnapKV(keep_ratio=1).is_identity
    assert not kv.SnapKV().is_identity
