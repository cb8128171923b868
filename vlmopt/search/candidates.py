"""What the search may choose from: patterns of about equal cost, after the table of MMInference (arXiv 2504.16083)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from ..kernels.patterns import AShape, DensePattern, GridSparse, VerticalSlash, ViewPattern

LENGTH = 25_000  # prompt tokens for which the budgets of the table are meant
SINK, LOCAL = 1024, 4096  # of the reference, whose cost is everybody's budget
LOCALS = (1024, 2048, 4096)
LINES = (  # single keys, distances
    (1000, 1024), (1000, 2048), (2000, 2048), (1000, 3096), (2000, 3096), (1000, 4096), (2000, 4096), (3500, 200),
    (1000, 2500),
)  # fmt: skip
NOWHERE = (3500, 200)  # columns and distances of a head without a grid: few distances, so the cost is known beforehand


def candidates(tokens: int, tile: int = 64) -> list[ViewPattern]:
    """Return the patterns to choose from, the reference first.

    That is an A-shape of 1024 first and 4096 last keys; then every pattern of the table; then all keys and no keys,
    which parts of the map may get.

    Args:
        tokens: length of the prompts; below 25 000 all budgets shrink in proportion.
        tile: rows that share their keys, and neighbouring keys that are read together.

    Raises:
        ValueError: fewer than one token.
    """
    if tokens < 1:
        raise ValueError(f"tokens must be 1 or more, got {tokens}")
    share, size = min(1.0, tokens / LENGTH), dict[str, Any](tile=tile, run=tile)

    def scaled(count: int, least: int = 1) -> int:
        return max(least, round(count * share))

    def lines(vertical: int, slash: int) -> dict[str, Any]:
        return {"vertical": scaled(vertical, 30), "slash": scaled(slash, 100), **size}

    found: list[ViewPattern] = [AShape(sink=scaled(SINK), local=scaled(LOCAL), **size)]
    found += [AShape(sink=scaled(128), local=scaled(local), **size) for local in LOCALS]
    found += [VerticalSlash(**lines(*counts)) for counts in LINES]
    for stride in ("search", "frame"):
        for columns, rows, diagonals in product((True, False), repeat=3):
            if columns or rows or diagonals:
                found.append(
                    GridSparse(stride=stride, columns=columns, rows=rows, diagonals=diagonals, **lines(*NOWHERE))
                )
    found += [DensePattern(**size), AShape(sink=0, local=0, **size)]
    return list(dict.fromkeys(found))


def keeps_nothing(pattern: ViewPattern) -> bool:
    return isinstance(pattern, AShape) and not pattern.sink and not pattern.local


def twins_of(candidates: Sequence[ViewPattern]) -> dict[int, int]:
    """Map candidates to the candidates that they equal unless the tokens per frame are known."""
    found = {}
    for number, pattern in enumerate(candidates):
        if isinstance(pattern, GridSparse) and pattern.stride == "frame":
            other = replace(pattern, stride="search")
            if other in candidates:
                found[number] = candidates.index(other)
    return found
