"""How many tokens stay, how a budget is shared between pictures, and where evenly spread picks lie."""

from __future__ import annotations

import math
from collections.abc import Sequence


def kept_tokens(total: int, keep_ratio: float | None, keep_tokens: int | None) -> int:
    """Budget for `total` >= 1 tokens: floor(ratio * total + 1/2) within 1..total, or min(keep_tokens, total)."""
    if keep_tokens is not None:
        return min(keep_tokens, total)
    assert keep_ratio is not None
    return min(max(math.floor(keep_ratio * total + 0.5), 1), total)


def share(counts: Sequence[int], budget: int) -> list[int]:
    """Split `budget` in proportion to `counts`: largest remainders, at least 1 for each non-empty part while it lasts.

    Sums to min(budget, sum(counts)), no part exceeds its count, ties go to the earlier part.
    """
    total = sum(counts)
    if budget >= total:
        return list(counts)
    parts = [budget * c // total for c in counts]
    open_parts = [i for i, c in enumerate(counts) if parts[i] < c]
    by_remainder = sorted(open_parts, key=lambda i: (parts[i] > 0, -(budget * counts[i] % total), i))
    for i in by_remainder[: budget - sum(parts)]:
        parts[i] += 1
    for i in (i for i, c in enumerate(counts) if c and not parts[i]):
        richest = max(range(len(counts)), key=lambda j: parts[j])
        if parts[richest] > 1:
            parts[richest], parts[i] = parts[richest] - 1, 1
    return parts


def strided(n: int, k: int) -> list[int]:
    """k of n places, evenly spread: nearest to the centre of each of k equal parts, the lower one in a tie."""
    return [((2 * i + 1) * n - 1) // (2 * k) for i in range(k)]
