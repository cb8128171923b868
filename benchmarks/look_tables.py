"""The tables of docs/second-look.md, from results: all blocks of seeds of a checkpoint together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from table_parts import markdown, measured_on, paired, records, table

from vlmopt.metrics.intervals import mean_interval

SECOND = {
    "contrast": "masked by `contrast`", "relative": "masked by `relative`",
    "random": "masked by a window at random", "object": "masked by the object's own box",
}  # fmt: skip


@table("second-look-points")
def pointing() -> str:
    """Write how often the token of highest score lies in the object, layer by layer."""
    found = pooled()
    head = ["layer", *(f"{name}, {what}" for name in found for what in ("ratio", "attention alone"))]
    layers = sum(key.startswith("ratio") for key in next(iter(found.values())))
    rows = [
        [str(layer), *(share(marks[f"{what} {layer}"]) for marks in found.values() for what in ("ratio", "attention"))]
        for layer in range(layers)
    ]
    return markdown(head, rows)


@table("second-look-answers")
def answers() -> str:
    """Write what answers about a masked image are worth, and how much of the object the mask leaves."""
    rows = []
    for name, marks in pooled().items():
        first = np.array(marks["first"], dtype=float)
        rows.append([name, "whole: the first answer", "", "", "", share(first), ""])
        for kind, told in SECOND.items():
            change = mean_interval(np.array(marks[kind], dtype=float) - first)
            cells = [share(marks.get(key, ())) for key in (f"{kind} points", f"kept {kind}", f"kept {kind} object")]
            rows.append([name, told, *cells, share(marks[kind]), paired(change)])
    head = ["checkpoint", "image", "points at the object", "image left", "object left", "right", "− first answer"]
    last = records("second_look")[-1]
    return markdown(head, rows) + measured_on(last["machine"], f"{len(first)} scenes a checkpoint")


def pooled() -> dict[str, dict[str, list[Any]]]:
    """Return marks of every scene by checkpoint and name; shares of pixels that a mask leaves as "kept ..."."""
    found: dict[str, dict[str, list[Any]]] = {}
    for line in sorted(records("second_look"), key=lambda line: line["checkpoint"]):
        marks = found.setdefault(line["checkpoint"], {})
        named = line["marks"] | {f"kept {name}": values for name, values in line["shares"].items()}
        for name, values in named.items():
            marks.setdefault(name, []).extend(values)
    return found


def share(marks: Sequence[float]) -> str:
    return f"{100 * float(np.mean(marks)):.1f}" if len(marks) else ""
