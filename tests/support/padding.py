"""Where padding lies in an image that was padded to a square, from geometry alone."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmopt.pruning.padding import PADDED


def square_padding(width: int, height: int, grid: int, threshold: float = PADDED) -> Tensor:
    """Bool[grid, grid]: cells of an image of width x height, padded to a square, whose padded fraction > threshold.

    Raises:
        ValueError: a size below 1, or a threshold outside 0..1.
    """
    if min(width, height, grid) < 1 or not 0 <= threshold <= 1:
        raise ValueError(
            f"width, height and grid must be >= 1 and threshold in 0..1, got {width}, {height}, {grid}, {threshold}"
        )
    side = max(width, height)
    covered = [coverage((side - size) // 2, size, side, grid) for size in (height, width)]
    return 1 - covered[0][:, None] * covered[1] > threshold


def coverage(offset: int, size: int, side: int, grid: int) -> Tensor:
    """fp64 [grid]: fraction of each of `grid` equal parts of 0..side that lies inside offset..offset + size."""
    edges = torch.arange(grid + 1) * side  # in pixels / grid: whole numbers, so that a full cell is exactly full
    inside = edges[1:].clamp_max((offset + size) * grid) - edges[:-1].clamp_min(offset * grid)
    return inside.clamp_min(0).double() / side
