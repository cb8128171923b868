"""What a search found: as an object, and as the files of its directory.

policy.json   the policy, with a note of what was promised on what
tune.json     the promise, the split, every candidate with what was seen of it, and why it is out
front.json    candidates that no other beat on the search part, by cost
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..atomic import atomic_write
from ..policy import Policy
from ..policy.files import as_json
from .rules import DENSE, Cost, Seen

FORMAT = 1


@dataclass(frozen=True)
class Tried:
    """A candidate. `seen` is selected on: it chose the finalists, and flatters them; `held` is not."""

    name: str
    seen: Seen | None = None
    cost: Cost | None = None
    held: Seen | None = None
    holds: bool | None = None
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict; differences are in points."""
        return {
            "policy": self.name,
            "selected_on": in_points(self.seen),
            "cost": None if self.cost is None else asdict(self.cost),
            "holdout": in_points(self.held),
            "confirmed": self.holds,
            "why_not": self.why,
        }


@dataclass(frozen=True)
class TuneResult:
    """The outcome of `vlmopt.tune`. Differences are in points of the mark that loses most; less than 0 is a loss.

    Attributes:
        policy: what to give to `vlmopt.optimize`; dense where nothing was confirmed.
        name: of it, in one line.
        passed: whether it is confirmed.
        difference, interval: from dense, on the hold-out, with one-sided bounds; None for dense.
        speedup: dense by policy in the objective, from the search part.
        front: candidates that no other beat on the search part, by cost.
        tried: every candidate.
        spent: answers asked in all.
        facts: all of tune.json.
    """

    policy: Policy
    name: str
    passed: bool
    difference: float | None
    interval: tuple[float, float] | None
    speedup: float
    front: tuple[Tried, ...]
    tried: tuple[Tried, ...]
    spent: int
    facts: Mapping[str, Any]

    def __str__(self) -> str:
        return "\n".join(said(self))


def in_points(seen: Seen | None) -> dict[str, Any] | None:
    if seen is None:
        return None
    scaled = {name: round(100 * getattr(seen, name), 4) for name in ("difference", "low", "high")}
    return {"images": seen.images, "mark": seen.mark, **scaled}


def front(tried: Sequence[Tried]) -> list[Tried]:
    """Return the candidates that no other beats in cost and loss, on the search part; by falling cost."""
    known = [
        ((one.cost.ratio, -one.seen.difference), one) for one in tried if one.seen is not None and one.cost is not None
    ]
    stay = [
        (own, one)
        for own, one in known
        if not any(other != own and other[0] <= own[0] and other[1] <= own[1] for other, _ in known)
    ]
    return [one for _, one in sorted(stay, key=lambda entry: entry[0], reverse=True)]


def write(result: TuneResult, run: Path) -> None:
    """Write the files of a search into its directory."""
    files = {
        "policy.json": as_json(result.policy.to_dict()),
        "tune.json": dumped(result.facts),
        "front.json": dumped([one.to_dict() for one in result.front]),
    }
    for name, text in files.items():
        with atomic_write(run / name) as fresh:
            fresh.write_text(text, encoding="utf-8")


def dumped(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def said(result: TuneResult) -> list[str]:
    """Write the outcome in a few lines."""
    facts = result.facts
    lines = [*(f"note: {note}" for note in facts["notes"]), facts["promise"]]
    finalists = [(one, one.held) for one in result.tried if one.held is not None]
    if finalists:
        width = max(len(one.name) for one, _ in finalists)
        lines.append(f"{'finalist':<{width}} {facts['objective']:>12} {'change':>8} {'at worst':>9}  confirmed")
    for one, held in finalists:
        cost = "-" if one.cost is None else f"x {one.cost.ratio:.2f}"
        change, low = 100 * held.difference, 100 * held.low
        lines.append(f"{one.name:<{width}} {cost:>12} {change:>+8.2f} {low:>+9.2f}  {'yes' if one.holds else 'no'}")
    if result.name == DENSE:
        lines.append("nothing was confirmed: policy.json is dense")
    return lines
