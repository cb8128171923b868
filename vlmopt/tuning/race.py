"""The search itself, on numbers alone: race on one part of the data, shortlist, confirm on another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .bounds import loses_less, upper_bound
from .rules import Cost, Marks, Rules, loss

Fits = Callable[[int, int], bool]  # candidates and images -> whether there is time for them
Ask = Callable[[Sequence[str], int], Mapping[str, Marks]]  # names and images -> what these images say about each


@dataclass
class Race:
    """How far the race is: what is known of every candidate, and why some are out."""

    marks: dict[str, Marks] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)

    def left(self, chain: Sequence[str]) -> list[str]:
        """Return the candidates of a chain that are still in."""
        return [name for name in chain if name not in self.dropped]


def race(
    chains: Sequence[Sequence[str]], ask: Ask, rules: Rules, images: int, fits: Fits = lambda candidates, count: True
) -> Race:
    """Show every candidate more and more images, and drop those that surely lose more than the budget.

    Candidates that are merely dominated stay: on few images many are equal by chance, and the slow and safe ones are
    those that can be confirmed.

    Args:
        chains: candidates from gentle to harsh; if one is out, so are the harsher ones of its chain, unasked.
        ask: answers on the first so many images of the search part.
        images: of the search part.
        fits: whether another look may be taken.
    """
    found = Race()
    first, *later = rules.looks(images)
    for depth in range(max(map(len, chains), default=0)):
        now = [chain[depth] for chain in chains if len(chain) > depth and chain[depth] not in found.dropped]
        _look(found, chains, now, ask, rules, first)
    for count in later:
        now = [name for chain in chains for name in found.left(chain)]
        if not fits(len(now), count):
            break
        _look(found, chains, now, ask, rules, count)
    return found


def _look(found: Race, chains: Sequence[Sequence[str]], now: Sequence[str], ask: Ask, rules: Rules, count: int) -> None:
    if not now:
        return
    found.marks |= ask(now, count)
    for chain in chains:
        for place, name in enumerate(chain):
            if name not in now or name in found.dropped:
                continue
            if not found.marks[name]:
                found.dropped[name] = "fails on sample after sample, or no answer of it can be marked"
            elif lost(found.marks[name], rules):
                found.dropped[name] = f"surely loses more than the budget, on {count} images"
                for harsher in chain[place + 1 :]:
                    found.dropped.setdefault(harsher, f"{name} is gentler, and surely loses more than the budget")


def lost(marks: Marks, rules: Rules) -> bool:
    """Return whether a candidate surely loses more than the budget in some mark."""
    return any(upper_bound(own, rules.confidence) < -rules.budget for own in marks.values())


def promising(found: Race, rules: Rules) -> list[str]:
    """Return the candidates that lost at most half the budget; the other half allows for having picked lucky ones."""
    names = [name for name in found.marks if name not in found.dropped]
    return [name for name in names if loss(found.marks[name]) <= rules.budget / 2]


def shortlist(losses: Mapping[str, float], costs: Mapping[str, Cost], rules: Rules) -> list[str]:
    """Return the finalists from slow to fast, evenly spread over those that are cheaper than dense.

    Of candidates whose costs cannot be told apart, the one that lost least stands for the others. Candidates that are
    slower and lost more stay: which of two lost less on the search part is largely chance, and without the slow ones
    nothing would be confirmed half of the time.
    """
    stay: list[str] = []
    for name in sorted(losses, key=lambda name: (losses[name], costs[name].ratio, name)):
        own = costs[name]
        alike = any(own.low <= costs[other].high and costs[other].low <= own.high for other in stay)
        if own.ratio < 1 and not alike:
            stay.append(name)
    stay.sort(key=lambda name: (-costs[name].ratio, name))
    places = np.linspace(0, len(stay) - 1, min(rules.finalists, len(stay))).round().astype(int)
    return [stay[place] for place in places]


def confirm(finalists: Sequence[str], ask: Ask, rules: Rules, images: int) -> dict[str, tuple[Marks, bool]]:
    """Test from slow to fast on images that chose nobody, and stop at the first that is not confirmed.

    Every test has the whole level: the order stood before, and a later test is made only where all before it held, so
    that the chance to return any policy beyond the budget is at most 1 - confidence (Maurer, Hothorn and Lehmacher,
    "Multiple comparisons in drug clinical trials and preclinical assays: a-priori ordered hypotheses", 1995).

    Returns:
        Tested candidate -> its differences, and whether it holds the budget in every mark.
    """
    tested: dict[str, tuple[Marks, bool]] = {}
    for name in finalists:
        marks = ask([name], images)[name]
        holds = bool(marks) and all(loses_less(own, rules.budget, rules.confidence) for own in marks.values())
        tested[name] = marks, holds
        if not holds:
            break
    return tested
