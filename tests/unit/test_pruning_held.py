"""Held tokens: they stay, inside the budget, whatever the method says."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.support.selectors import SETTINGS
from tests.support.visual import visual
from tests.unit.test_pruning_budget import Brightest
from tests.unit.test_pruning_budget import visual as coloured
from vlmopt.pruning import Resize
from vlmopt.pruning.budget import ALLOCATIONS, apportion
from vlmopt.pruning.resize import block_of, grid_cells

GRIDS = [(1, 4, 5), (3, 2, 4), (1, 1, 1)]


def holding(tokens, *places):
    held = torch.zeros(len(tokens), dtype=torch.bool)
    held[list(places)] = True
    return dataclasses.replace(tokens, held=held)


@pytest.mark.parametrize("places", [[43], [0], [19, 43, 44], list(range(30, 45))], ids=str)
@pytest.mark.parametrize("name", SETTINGS)
def test_every_method_keeps_what_is_held(name, places):
    method = SETTINGS[name]
    tokens = visual(GRIDS, method.captures, generator=torch.Generator().manual_seed(0))
    chosen, free = method.select(holding(tokens, *places)), method.select(tokens)
    budget = max(method.budget(len(tokens)), len(places))
    assert set(places) <= set(chosen.keep.tolist())
    assert (chosen.keep.diff() > 0).all()
    if method.adaptive:
        crowded = len(places) - 1 if method.resizes_pixels else 0  # held cells of one block all stay
        assert len(chosen.keep) <= max(budget, len(free.keep)) + crowded
    else:
        assert len(chosen.keep) == budget
    if chosen.written is not None:
        assert not set(places) & set(chosen.written.slots.tolist())
        assert (chosen.written.origin[places] == -1).all()


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("segment", ["image", "frame"])
@pytest.mark.parametrize("places", [[49], [3, 49], [20, 21, 22, 23, 48]], ids=str)
def test_allocations_stay_exact(allocation, segment, places):
    tokens = holding(coloured([(1, 4, 5), (3, 2, 4), None, (1, 1, 1)]), *places)
    for k in range(1, 51):
        keep = Brightest(keep_tokens=k, allocation=allocation, segment=segment).select(tokens).keep
        assert len(keep) == max(k, len(places))
        assert set(places) <= set(keep.tolist())


def test_the_share_of_an_image_holds_the_held_token():
    tokens = coloured([(1, 4, 5), (1, 4, 5)])
    for k in (2, 5, 8):
        free = Brightest(keep_tokens=k).select(tokens).keep
        keep = Brightest(keep_tokens=k).select(holding(tokens, 39)).keep
        assert tokens.item[keep].bincount().tolist() == tokens.item[free].bincount().tolist()
    assert Brightest(keep_tokens=1).select(holding(tokens, 39)).keep.tolist() == [39]
    assert Brightest(keep_ratio=1.0).select(holding(tokens, 39)).keep.tolist() == list(range(40))


def test_row_separators_and_padding_may_be_held():
    coords = torch.cartesian_prod(torch.arange(1), torch.arange(3), torch.arange(4)).reshape(-1, 3)
    coords[:, 2] = torch.where(coords[:, 2] == 3, -1, coords[:, 2])
    coords[coords[:, 2] < 0] = -1  # a separator behind every row of three cells
    tokens = dataclasses.replace(coloured([(1, 3, 4)]), coords=coords, grids=((1, 3, 3),))
    for k in range(1, 13):
        keep = Brightest(keep_tokens=k).select(holding(tokens, 11)).keep.tolist()
        assert len(keep) == k
        assert 11 in keep
        assert k > 10 or not {3, 7} & set(keep)  # the others still come last


def test_held_parts_come_first():
    assert apportion([5, 1], 1, [9, 9], 1, [0, 1]) == [0, 1]
    assert apportion([5, 1], 2, [9, 9], 1, [0, 1]) == [1, 1]
    assert apportion([5, 1], 6, [9, 9], 1, [0, 3]) == [3, 3]
    assert apportion([5, 1], 6, [9, 9], 1, [0, 1]) == [5, 1]


@pytest.mark.parametrize(("grid", "small"), [((4, 5), (2, 2)), ((6, 8), (3, 4)), ((7, 3), (1, 1)), ((5, 5), (5, 5))])
def test_blocks_lie_around_the_cells_that_stand_for_them(grid, small):
    block, cells = block_of(*grid, *small), grid_cells(*grid, *small)
    assert block[cells].tolist() == list(range(small[0] * small[1]))
    assert block.max() == len(cells) - 1


def test_a_held_cell_stands_for_its_block():
    tokens, method = visual([(1, 6, 8), (2, 4, 4)]), Resize(keep_ratio=0.25)
    free, chosen = method.select(tokens).keep, method.select(holding(tokens, 79)).keep
    gone = set(free.tolist()) - set(chosen.tolist())
    assert len(chosen) == len(free)
    assert set(chosen.tolist()) - set(free.tolist()) == {79}
    assert gone == {48 + 16 + int(grid_cells(4, 4, 2, 2)[-1])}
