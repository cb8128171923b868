"""PyramidKV: budgets that fall evenly with depth (arXiv 2406.02069)."""

from __future__ import annotations

BETA = 20  # the last layer keeps a twentieth of the mean


def pyramid(competing: int, ratio: float, depth: int, window: int) -> list[float]:
    """Return the share of its keys that each of `depth` layers keeps; their mean is `ratio`.

    The last layer keeps mean / 20, the first 2 * mean minus that, capped at all keys, with a straight line between.
    Where the last would keep fewer than `window` keys the budget is too small to be shaped: all layers keep `ratio`.

    Args:
        competing: keys that compete in a layer. ratio: 0..1.
    """
    mean = competing * ratio
    last = mean / BETA
    first = 2 * mean - last
    if first > competing:
        first, last = float(competing), 2 * mean - competing
    if last < window or depth < 2:
        return [ratio] * depth
    return [(first - (first - last) * layer / (depth - 1)) / competing for layer in range(depth)]
