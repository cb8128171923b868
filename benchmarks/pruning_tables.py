"""Markdown of what `pruning_quality.py` measured: right answers, and paired differences with their intervals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from table_parts import paired

from common import RESULTS
from pruning_variants import variants
from vlmopt.metrics import Interval, paired_difference, wilson

Blocks = dict[int, dict[str, Any]]  # newest row of one method at one budget, by block of seeds
Cells = dict[tuple[str, float], Blocks]
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- pruning_tables.py -->\n", "<!-- end -->"
CONTROL = "random"


class Difference(NamedTuple):
    """Right answers of one method less those of another, as fractions."""

    over: Interval  # all images that both were asked about; bootstrap, paired
    lowest: float  # of the blocks
    highest: float
    blocks: int
    images: int

    def __str__(self) -> str:
        text = paired(self.over)
        if self.over.low == self.over.high:
            return text
        return f"{text} {100 * self.lowest:+.1f} to {100 * self.highest:+.1f}"


def read(path: Path) -> dict[str, Cells]:
    """Return cells by checkpoint."""
    newest: dict[str, Cells] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(text)
        cells = newest.setdefault(record["checkpoint"], {})
        for row in record["rows"]:
            known = {**row, "kinds": record["kinds"]}
            cells.setdefault((row["method"], row["keep_ratio"]), {})[record["block"]] = known
    return newest


def base_of(name: str) -> str | None:
    """Return what "A + B" adds B to; nothing for a method as it is."""
    return name.rpartition(" + ")[0] or None


def difference(before: Blocks, after: Blocks) -> Difference:
    """Return `after` less `before` on the images of the blocks that both have.

    Raises:
        ValueError: fewer than three common blocks, which cannot tell a lucky draw from a gain; or other questions.
    """
    common = sorted(before.keys() & after.keys())
    if len(common) < 3:
        raise ValueError(f"blocks {common} were asked of both: a difference needs three or more; run with --blocks 3")
    if other := [block for block in common if before[block]["kinds"] != after[block]["kinds"]]:
        raise ValueError(f"blocks {other} hold other questions for one of both: run them with the same --questions")
    pairs = [(marks(before[block]), marks(after[block])) for block in common]
    each = [float(b.mean() - a.mean()) for a, b in pairs]
    first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
    one = np.ones(len(first))
    return Difference(paired_difference((first, one), (second, one)), min(each), max(each), len(common), len(first))


def marks(row: dict[str, Any]) -> np.ndarray:
    return np.array([mark == "1" for mark in row["marks"]], dtype=np.float64)


def write() -> None:
    """Put the tables into the page of benchmarks."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(before + BEGIN + tables() + END + rest.partition(END)[2], encoding="utf-8")


def tables(against: str | None = None) -> str:
    """Return Markdown: accuracies, and differences of every method from `against`, or of "A + B" from "A".

    What adds nothing to another method is compared with `random`.
    """
    newest = read(RESULTS / "pruning_quality.jsonl")
    return "\n".join(line for name, cells in newest.items() for line in table(name, cells, against))


def table(checkpoint: str, cells: Cells, against: str | None) -> Iterator[str]:
    names = sorted(dict.fromkeys(name for name, _ in cells if name != "dense"), key=place)
    ratios = sorted({keep for name, keep in cells if name != "dense"}, reverse=True)
    columns = [f"{keep:g}" for keep in ratios]
    yield from (f"**{checkpoint}, dense {accuracy(cells['dense', 1.0])}**", "")
    yield from heading("method", [*columns, "layers", "slope", "padding", "images"])
    for name in names:
        mine = [cells.get((name, keep)) for keep in ratios]
        asked = dict.fromkeys(str(images(cell)) for cell in mine if cell)
        yield line(name, *map(accuracy, mine), *facts(next(filter(None, mine))), " / ".join(asked))
    yield from ("", f"**{checkpoint}, differences in points: all blocks (95 % interval), lowest to highest block**", "")
    yield from heading("method", ["less", *columns, "blocks", "images"])
    for name in names:
        base = against or base_of(name) or CONTROL
        both = [(cells.get((base, keep)), cells.get((name, keep))) for keep in ratios]
        found = [difference(a, b) if a and b else None for a, b in both]
        if name != base and any(found):
            sizes = [" / ".join(dict.fromkeys(str(size) for size in column)) for column in sizes_of(found)]
            yield line(name, base, *("" if one is None else str(one) for one in found), *sizes)
    yield ""


def place(name: str) -> int:
    """Return where a method stands in a table, beside what is added to it."""
    return list(variants(0.5, False, None)).index(name.partition(" + ")[0])


def heading(first: str, others: Sequence[str]) -> tuple[str, str]:
    return line(first, *others), "|" + "---|" * (len(others) + 1)


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def accuracy(cell: Blocks | None) -> str:
    if cell is None:
        return ""
    every = np.concatenate([marks(row) for row in cell.values()])
    low, high = wilson(int(every.sum()), len(every))
    return f"{100 * every.mean():.1f} ± {50 * (high - low):.1f}"


def facts(cell: Blocks) -> list[str]:
    """Return means over the blocks at one budget: share of tokens, slope, padding."""

    def mean(key: str) -> float | None:
        values = [row[key] for row in cell.values()]
        return None if None in values else sum(values) / len(values)

    slope, padding, layers = mean("slope"), mean("padding"), mean("layers")
    return [
        f"{100 * (layers or 0):.0f} %",
        "" if slope is None else f"{slope:+.2f}",
        "" if padding is None else f"{100 * padding:.0f} %",
    ]


def images(cell: Blocks) -> int:
    return sum(len(row["marks"]) for row in cell.values())


def sizes_of(found: Iterable[Difference | None]) -> list[list[int]]:
    """Return blocks and images of the differences that there are."""
    there = [one for one in found if one is not None]
    return [[one.blocks for one in there], [one.images for one in there]]
