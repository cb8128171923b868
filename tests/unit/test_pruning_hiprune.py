"""HiPrune: anchors, the cells around them, and the deep block for the rest."""

from __future__ import annotations

import dataclasses

import torch

from tests.support.embedded import keep_of, visual
from vlmopt.pruning import HiPrune, VisionAttention


def tokens(middle, deep, grids=((1, 4, 4),)):
    signals = {VisionAttention(8, "all"): middle, VisionAttention(-2, "all"): deep}
    return visual(list(grids), signals)


def golden():
    middle, deep = torch.zeros(16), torch.arange(16) / 100
    middle[3], middle[9], deep[0], deep[8] = 0.5, 0.2, 0.9, 0.8
    return middle, deep


def test_golden():
    """The anchor stands at the end of a row: what follows it in the sequence is not a neighbour."""
    assert keep_of(HiPrune(keep_tokens=6, alpha=0.5), tokens(*golden())) == [0, 2, 3, 7, 8, 15]


def test_without_anchors_the_deep_block_decides():
    assert keep_of(HiPrune(keep_tokens=4, alpha=0), tokens(*golden())) == [0, 8, 14, 15]
    assert keep_of(HiPrune(keep_tokens=4), tokens(*golden())) == [0, 8, 14, 15]  # fewer than five: no anchor


def test_where_the_budget_ends_neighbours_of_the_weakest_anchor_are_missing():
    middle = torch.zeros(49)
    middle[8], middle[40] = 0.5, 0.4  # (1, 1) and (5, 5) of 7 x 7
    keep = keep_of(HiPrune(keep_tokens=8, alpha=1), tokens(middle, torch.arange(49) / 100, [(1, 7, 7)]))
    assert keep == [1, 7, 8, 9, 15, 40, 41, 47]  # two of four, by the deep block


def test_neighbours_lie_in_the_same_image_and_frame():
    deep = torch.arange(24) / 100
    for grids in ([(1, 3, 4), (1, 3, 4)], [(2, 3, 4)]):
        middle = torch.zeros(24)
        middle[11] = 1.0  # the last cell of the first
        keep = keep_of(HiPrune(keep_tokens=5, alpha=1, allocation="global"), tokens(middle, deep, grids))
        assert keep == [7, 10, 11, 22, 23]


def test_tokens_without_a_grid_have_no_neighbours():
    given = tokens(*golden())
    blind = dataclasses.replace(given, coords=torch.full_like(given.coords, -1), grids=(None,))
    assert keep_of(HiPrune(keep_tokens=5, alpha=1), blind) == [0, 3, 8, 14, 15]
