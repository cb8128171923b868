"""What every selector promises, over random inputs; and what each one is for."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.support.selectors import SELECTORS, SETTINGS, with_ratio
from tests.support.visual import GRIDS, cells, visual, without_coords
from vlmopt import pruning
from vlmopt.pruning import AttentionRows, FastV, Random, Uniform
from vlmopt.pruning.base import top


def test_every_selector_has_a_row_in_the_table():
    own = {name for name, cls in pruning.registry.items() if cls.__module__.startswith("vlmopt.pruning.")}
    assert own == set(SELECTORS)
    assert all(method.name == name for name, row in SELECTORS.items() for method in row)


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("method", SETTINGS.values(), ids=SETTINGS)
def test_keep_is_sorted_unique_exact_and_repeatable(method, grids):
    tokens = visual(grids, method.captures)
    keep = method.select(tokens).keep
    assert keep.dtype == torch.long
    assert (keep.diff() > 0).all()
    assert keep[0] >= 0
    assert keep[-1] < len(tokens)
    if not method.resizes_pixels:
        assert len(keep) <= min(method.budget(tokens.total), len(tokens))
        assert method.adaptive or len(keep) == min(method.budget(tokens.total), len(tokens))
    assert torch.equal(keep, method.select(tokens).keep)


@pytest.mark.parametrize("keep_ratio", [0.01, 0.1, 0.25, 1 / 3, 0.5, 0.77, 0.99, 1.0])
@pytest.mark.parametrize("name", SELECTORS)
def test_budget_in_all_ratios(name, keep_ratio):
    method = with_ratio(SELECTORS[name][0], keep_ratio)
    for grids in GRIDS.values():
        tokens = visual(grids, method.captures)
        kept = len(method.select(tokens).keep)
        want = min(max(math.floor(keep_ratio * tokens.total + 0.5), 1), tokens.total)
        assert method.budget(tokens.total) == want
        frames = sum(grid[0] for grid in grids)  # every frame of a resized video keeps at least one token
        assert kept == want or (method.adaptive and 1 <= kept <= want + frames * method.resizes_pixels)
        assert kept == tokens.total or keep_ratio < 1 or method.adaptive


@pytest.mark.parametrize("method", SETTINGS.values(), ids=SETTINGS)
def test_later_stages_see_a_subset(method):
    generator = torch.Generator().manual_seed(3)
    for grids in GRIDS.values():
        total = sum(math.prod(grid) for grid in grids)
        left = (torch.rand(total, generator=generator) < 0.6).nonzero()[:, 0]
        if not len(left):
            continue
        tokens = visual(grids, method.captures, keep=left)
        if not method.adaptive:
            assert len(method.select(tokens).keep) == min(method.budget(total), len(left))
        if not method.needs and not method.resizes_pixels:
            blind = without_coords(tokens)
            assert len(method.select(blind).keep) == min(method.budget(total), len(left))


def test_budget_is_counted_in_original_tokens():
    method, left = Random(keep_ratio=0.25), torch.arange(0, 64, 2)
    assert len(method.select(visual([(1, 8, 8)], keep=left)).keep) == 16
    assert len(Random(keep_ratio=0.9).select(visual([(1, 8, 8)], keep=left)).keep) == 32  # no more than are there


def test_more_tokens_asked_than_there_are():
    for cls in (Random, Uniform, FastV):
        method = cls(keep_tokens=1000)
        tokens = visual([(1, 3, 3)], method.needs)
        assert method.select(tokens).keep.tolist() == list(range(9))


def test_random_follows_the_seed_alone():
    tokens, method = visual([(1, 9, 9)]), Random(keep_ratio=0.3)
    torch.manual_seed(1)
    first = method.select(tokens).keep
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(first, method.select(tokens).keep)
    assert torch.equal(before, torch.get_rng_state())
    others = [method.select(visual([(1, 9, 9)], seed=seed)).keep for seed in range(1, 9)]
    assert all(not torch.equal(first, other) for other in others)


def test_random_is_unbiased():
    counts = torch.zeros(20)
    for seed in range(2000):
        counts[Random(keep_ratio=0.25).select(visual([(1, 4, 5)], seed=seed)).keep] += 1
    assert ((counts / 2000 - 0.25).abs() < 0.05).all()  # 5 standard deviations


def test_random_stages_are_nested():
    early = Random(keep_ratio=0.5).select(visual([(1, 8, 8)], seed=7)).keep
    late = Random(keep_ratio=0.2).select(visual([(1, 8, 8)], seed=7)).keep
    through = early[Random(keep_ratio=0.2).select(visual([(1, 8, 8)], seed=7, keep=early)).keep]
    assert torch.equal(late, through)


def test_uniform_on_a_square():
    keep = Uniform(keep_ratio=0.25).select(visual([(1, 8, 8)])).keep
    assert keep.tolist() == [y * 8 + x for y in (0, 2, 4, 6) for x in (0, 2, 4, 6)]
    keep = Uniform(keep_tokens=1).select(visual([(1, 5, 5)])).keep
    assert keep.tolist() == [12]


@pytest.mark.parametrize("shape", [(16, 16), (10, 24), (24, 10), (7, 13)])
@pytest.mark.parametrize("keep_ratio", [0.1, 0.25, 0.5])
def test_uniform_leaves_no_hole(shape, keep_ratio):
    tokens = visual([(1, *shape)])
    yx = tokens.coords[:, 1:].float()
    kept = yx[Uniform(keep_ratio=keep_ratio).select(tokens).keep]
    reach = torch.cdist(yx, kept, p=float("inf")).amin(1).max()
    assert reach <= math.ceil(keep_ratio**-0.5)  # no cell farther from a kept one than a stride


def test_uniform_serves_every_image():
    tokens = visual([(1, 6, 9), (1, 2, 3), (1, 1, 1)])
    for k in range(3, 61):
        counts = tokens.item[Uniform(keep_tokens=k).select(tokens).keep].bincount(minlength=3)
        assert (counts >= 1).all()
        assert abs(int(counts[0]) - k * 54 / 61) <= 2


def test_uniform_shares_frames_evenly():
    tokens = visual([(5, 4, 6)])
    for k in range(1, 121):
        frames = tokens.coords[Uniform(keep_tokens=k).select(tokens).keep, 0].bincount(minlength=5)
        assert frames.max() - frames.min() <= 1


def test_uniform_without_a_grid_strides_over_the_sequence():
    keep = Uniform(keep_ratio=0.25).select(without_coords(visual([(1, 4, 4)]))).keep
    assert keep.tolist() == [1, 5, 9, 13]


def test_uniform_keeps_row_separators_last():
    grid = cells((1, 4, 4)).reshape(4, 4, 3)
    coords = torch.cat([grid, torch.full((4, 1, 3), -1)], 1).reshape(-1, 3)  # a newline token after each row
    tokens = dataclasses.replace(visual([(1, 4, 5)]), coords=coords)
    newline = (coords < 0).all(1)
    for k in range(1, 21):
        keep = Uniform(keep_tokens=k).select(tokens).keep
        assert len(keep) == k
        assert int(newline[keep].sum()) == max(k - 16, 0)


def test_fastv_takes_the_planted_tokens():
    method = FastV(keep_tokens=3, layer=5)
    assert method.needs == {AttentionRows(4, rows=1)}
    rows = torch.full((2, 1, 36), 0.01)
    rows[0, 0, [4, 9]], rows[1, 0, [9, 30]] = 0.3, 0.2
    tokens = dataclasses.replace(visual([(1, 6, 6)]), signals={AttentionRows(4): rows})
    selection = method.select(tokens)
    assert selection.keep.tolist() == [4, 9, 30]
    assert torch.allclose(selection.scores, rows.mean((0, 1)))
    assert selection.scores.dtype == torch.float32


def test_ties_go_to_the_lowest_index():
    tokens = dataclasses.replace(visual([(1, 6, 6)]), signals={AttentionRows(1): torch.full((2, 1, 36), 0.5)})
    assert FastV(keep_tokens=5).select(tokens).keep.tolist() == [0, 1, 2, 3, 4]
    assert top(torch.tensor([1.0, 3, 2, 3, 2, 2]), 4).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    rows = torch.rand(2, 1, 9)
    rows[0, 0, 3] = bad
    tokens = dataclasses.replace(visual([(1, 3, 3)]), signals={AttentionRows(1): rows})
    with pytest.raises(ValueError, match=r"fastv.*finite"):
        FastV(keep_tokens=5).select(tokens)
