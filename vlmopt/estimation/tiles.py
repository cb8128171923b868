"""Sizes and tiles: the arithmetic that image processors do before any pixel is touched. Sizes are (height, width)."""

from __future__ import annotations

import math
from collections.abc import Sequence

Size = tuple[int, int]
LARGEST = 4096  # pixels of a side that Idefics3 and SmolVLM allow before they cut


def capped(size: Size, cell: int, least: int, most: int) -> Size:
    """Return the cells of a side `cell`, rounded, with an area within `least`..`most` pixels (Qwen-VL)."""
    h, w = (round(side / cell) for side in size)
    if h * w * cell**2 > most:
        shrink = math.sqrt(math.prod(size) / most)
        return max(1, math.floor(size[0] / shrink / cell)), max(1, math.floor(size[1] / shrink / cell))
    if h * w * cell**2 < least:
        grow = math.sqrt(least / math.prod(size))
        return math.ceil(size[0] * grow / cell), math.ceil(size[1] * grow / cell)
    return h, w


def nearest_grid(size: Size, cell: int, most: int) -> Size:
    """Return the largest grid of whole cells with the image's aspect and at most `most` of them (Gemma4)."""
    scale = math.sqrt(most / math.prod(size))
    h, w = math.floor(scale * size[0]), math.floor(scale * size[1])
    if not h and not w:
        raise ValueError(f"an image of {size[1]}x{size[0]} pixels leaves no cell of {cell} pixels")
    if not h:
        return 1, min(size[1] // size[0], most)
    if not w:
        return min(size[0] // size[1], most), 1
    return h, w


def longest_edge(size: Size, longest: int, cell: int) -> Size:
    """Return the cells, rounded up, of an image shrunk until no side exceeds `longest` pixels (Pixtral)."""
    ratio = max(size) / longest
    h, w = (math.floor(side / ratio) if ratio > 1 else side for side in size)
    return (h - 1) // cell + 1, (w - 1) // cell + 1


def largest_within(size: Size, longest: int, tile: int) -> Size:
    """Return the (rows, columns) of tiles of an image stretched to the longest side, then to whole tiles (Idefics3).

    The other side is made even first, as the processor does.
    """
    h, w = size
    aspect = w / h
    if w >= h:
        h, w = int(longest / aspect), longest
        h += h % 2
    else:
        h, w = longest, int(longest * aspect)
        w += w % 2
    h, w = max(h, 1), max(w, 1)
    if max(h, w) > LARGEST:
        aspect = w / h
        h, w = (max(int(LARGEST / aspect), 1), LARGEST) if w >= h else (LARGEST, max(int(LARGEST * aspect), 1))
    return math.ceil(h / tile), math.ceil(w / tile)


def aspect_tiles(size: Size, tile: int, least: int, most: int) -> Size:
    """Return the (rows, columns) of tiles nearest in aspect.

    In a tie there are more of them, while they cover less than twice the area.
    """
    h, w = size
    best, difference = (1, 1), math.inf
    grids = [(r, c) for c in range(1, most + 1) for r in range(1, most + 1) if least <= r * c <= most]
    for r, c in sorted(grids, key=lambda grid: grid[0] * grid[1]):  # stable: of equal numbers fewer columns first
        found = abs(w / h - c / r)
        if found < difference or (found == difference and w * h > 0.5 * tile**2 * r * c):
            best, difference = (r, c), found
    return best


def any_resolution_tiles(size: Size, pinpoints: Sequence[Sequence[int]], tile: int, side: int) -> tuple[Size, Size]:
    """Return the tiles (rows, columns) of the best of the `pinpoints`, and the patch grid of the image in them.

    Padding is left out.

    Args:
        pinpoints: resolutions (height, width). tile: pixels of a tile's side. side: its patches.
    """
    height, width = best_resolution(size, pinpoints)
    rows, columns = height // tile, width // tile
    h, w = side * rows, side * columns
    if size[1] / size[0] > w / h:
        h -= (h - int(round(size[0] * (w / size[1]), 7))) // 2 * 2
    else:
        w -= (w - int(round(size[1] * (h / size[0]), 7))) // 2 * 2
    return (rows, columns), (h, w)


def best_resolution(size: Size, pinpoints: Sequence[Sequence[int]]) -> Size:
    """Return the resolution that shows most of the image's own pixels, then the one that wastes least (LLaVA-NeXT).

    Raises:
        ValueError: there is none to choose from.
    """
    if not pinpoints:
        raise ValueError("image_grid_pinpoints of the config is empty: it has to name the resolutions of tiles")

    def merit(candidate: Sequence[int]) -> tuple[int, int]:
        scale = min(candidate[1] / size[1], candidate[0] / size[0])
        shown = min(int(size[0] * scale) * int(size[1] * scale), math.prod(size))
        return shown, shown - candidate[0] * candidate[1]

    best = max(pinpoints, key=merit)
    return best[0], best[1]
