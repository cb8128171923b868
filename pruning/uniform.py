"""The control that spreads its budget evenly over the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .base import Selector, register
from .budget import share, strided
from .tokens import Selection, VisualTokens


@register("uniform")
@dataclass(frozen=True, kw_only=True)
class Uniform(Selector):
    """Keep evenly spread cells: a strided grid per image where its grid is known, every so many tokens elsewhere.

    The budget is met exactly: rows of the strided grid may differ by one cell.
    """

    reads = "grid"

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        items, sizes = (x.tolist() for x in tokens.item.unique_consecutive(return_counts=True))
        parts = share(sizes, k)
        coords = tokens.coords.cpu().split(sizes)
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        grids = [tokens.grids[item] for item in items]
        spans = zip(coords, parts, grids, starts, strict=True)
        keep = [spread(cells, part, grid) + start for cells, part, grid, start in spans]
        return Selection(torch.cat(keep).to(tokens.ordinal.device))


def spread(coords: Tensor, k: int, grid: tuple[int, int, int] | None = None) -> Tensor:
    """Return k of the n tokens of one span, evenly spread.

    Args:
        coords: Long[n, 3] (t, y, x), -1 where unknown. k: 0..n. grid: (t, h, w) of the whole span, if known.

    Returns:
        Long[k], ascending.
    """
    shape = lattice(coords, grid)
    return torch.tensor(strided(len(coords), k) if shape is None else strided_grid(shape, k), dtype=torch.long)


def lattice(coords: Tensor, grid: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
    """Return (t, h, w) if the cells [n, 3] are a complete grid in raster order (of any stride), else None."""
    if bool((coords < 0).any()):
        return None
    if grid is not None and len(coords) == math.prod(grid):  # every cell of it
        return grid
    axes = [coords[:, i].unique() for i in range(3)]
    if len(coords) != len(axes[0]) * len(axes[1]) * len(axes[2]):
        return None
    return (len(axes[0]), len(axes[1]), len(axes[2])) if torch.equal(torch.cartesian_prod(*axes), coords) else None


def strided_grid(shape: tuple[int, int, int], k: int) -> list[int]:
    """Return exactly k cells of a (t, h, w) grid as flat indices: frames share k, rows of a frame share its part."""
    t, h, w = shape
    frames = min(t, k)
    picks = []
    for frame, budget in zip(strided(t, frames), cuts(k, frames), strict=True):
        rows = grid_rows(h, w, budget)
        for row, columns in zip(strided(h, rows), cuts(budget, rows), strict=True):
            picks += [(frame * h + row) * w + x for x in strided(w, columns)]
    return picks


def grid_rows(h: int, w: int, k: int) -> int:
    """Return the number of rows over which k >= 1 of h * w cells spread most evenly in both directions."""
    rows = round(math.sqrt(k * h / w))
    return min(max(rows, -(-k // w), 1), h, k)


def cuts(total: int, parts: int) -> list[int]:
    """Split `total` into `parts` whole numbers that differ by at most one, evenly interleaved."""
    edges = [i * total // parts for i in range(parts + 1)] if parts else [0]
    return [high - low for low, high in pairwise(edges)]
