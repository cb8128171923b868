"""Methods at several budgets each, as policies in one line; the command line checks them without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .. import catalogue
from ..core import shown
from ..policy import inline

CONTROLS = ("random", "uniform")  # they choose without looking; every sweep has them
BUDGET = "keep_ratio"
BUDGETS = frozenset({BUDGET, "keep_tokens"})


class Swept(NamedTuple):
    """One point of a sweep: the methods' dict forms, the line that it belongs to, and its ratio."""

    methods: list[dict[str, Any]]
    line: str
    ratio: float


def grid(lines: Sequence[str], ratios: Sequence[float]) -> dict[str, Swept]:
    """Return the points of every line, then those of the controls, by name (`fastv@0.25`), ratios rising.

    Args:
        lines: policies as on the command line; the last selector of each that has no budget of its own gets the ratio.
        ratios: shares of the visual tokens, above 0 and below 1: dense is the line's other end.

    Raises:
        ValueError: a line that names no method or has its budget already, or ratios that are none.
    """
    if bool(lines) != bool(ratios):
        raise ValueError(
            "give --sweep METHOD ... and --ratios 0.1 0.25 ... together: one says what, the other how much"
        )
    if wrong := [ratio for ratio in ratios if not (math.isfinite(ratio) and 0 < ratio < 1)]:
        raise ValueError(f"--ratios must lie above 0 and below 1, got {wrong[0]:g}; dense is always part of the run")
    if twice := {line for line in lines if lines.count(line) > 1}:
        raise ValueError(f"--sweep names {shown(min(twice))} twice")
    every = [*lines, *(control for control in CONTROLS if lines and control not in lines)]
    return {
        f"{line}@{ratio:g}": Swept(budgeted(line, ratio), line, ratio)
        for line in every
        for ratio in sorted(set(ratios))
    }


def budgeted(line: str, ratio: float) -> list[dict[str, Any]]:
    """Return the methods of a line, with the ratio for the selector that takes it.

    Raises:
        ValueError: none does.
    """
    if catalogue.preset(line) is not None:
        raise ValueError(f"--sweep {shown(line)}: a preset has its budget; name its methods without keep_ratio")
    inline.check(line)
    methods = inline.parse(line, set(catalogue.methods()))
    if methods is None:
        raise ValueError(f"--sweep {shown(line)}: name a method, or several joined by '+', such as fastv:layer=4")
    for place in reversed(range(len(methods))):
        if takes_budget(methods[place]):
            return [*methods[:place], {**methods[place], BUDGET: ratio}, *methods[place + 1 :]]
    raise ValueError(
        f"--sweep {shown(line)}: no method in it takes a ratio; name a selector, without keep_ratio and keep_tokens"
    )


def takes_budget(method: Mapping[str, Any]) -> bool:
    """Tell a selector without a budget; of another package's method its settings are not known here."""
    kinds = {entry.name: entry.kind for entry in catalogue.built_in()}
    known = catalogue.settings().get(str(method["method"]))
    selects = kinds.get(str(method["method"]), "selector") == "selector"
    return selects and (known is None or BUDGET in known) and BUDGETS.isdisjoint(method)
