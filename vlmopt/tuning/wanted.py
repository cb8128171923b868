"""What a user asks of a search, and the refusal where the data is too small to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmopt.core import Configured, near, shown

from ..choices import OBJECTIVES
from ..policy import Policy
from .bounds import fewest, needed
from .rules import Rules
from .space import chains_of

DISCORDANCE = 0.03  # assumed share of questions that a gentle policy answers differently, while nothing is measured


class Unresolvable(ValueError):
    """The data has too few images for the budget; nothing was asked."""


@dataclass(frozen=True, kw_only=True)
class Wanted(Configured):
    """What is looked for.

    Attributes:
        budget: points of every mark that the policy may lose, 0 to 100.
        objective: what is to be least, one of `choices.OBJECTIVES`.
        confidence: that no more is lost than the budget, above 0.5 and below 1.
        space: entries of a space file (`space.chains_of`); None for the usual candidates.
        base: methods that every candidate has.
        minutes: that the search may take, None for any; the confirmation comes to its end all the same.
        best_effort: go on where the data has too few images; what comes out may not be confirmed.

    Raises:
        TypeError, ValueError: one of them cannot be right.
    """

    budget: float = 1.0
    objective: str = "ttft"
    confidence: float = 0.95
    space: Sequence[Any] | None = None
    base: Policy = field(default_factory=Policy)
    minutes: float | None = None
    best_effort: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.budget, bool) or not isinstance(self.budget, (int, float)):
            raise TypeError(f"budget must be a number of points, got {shown(self.budget)}")
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"unknown objective {shown(self.objective)}{near(str(self.objective), OBJECTIVES)}; choose one of "
                f"{', '.join(OBJECTIVES)}"
            )
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes must be above 0, got {self.minutes!r}")
        if self.space is not None and not self.space:
            raise ValueError("space is empty: name candidates, or leave it out for the usual ones")
        chains_of(self.space or ())
        _ = self.rules  # refuses a budget or a confidence out of range

    @property
    def rules(self) -> Rules:
        return Rules(budget=self.budget / 100, confidence=self.confidence)


def check_images(wanted: Wanted, images: int) -> str:
    """Say how many images of the hold-out it takes.

    Args:
        images: of the hold-out.

    Raises:
        Unresolvable: the hold-out has less than half of what is needed, and that will not do.
    """
    rules = wanted.rules
    if not rules.budget:
        raise Unresolvable(
            "budget 0 cannot be confirmed on any number of images: a sample cannot show that nothing is lost; allow "
            "some points, e.g. --budget 1"
        )
    enough = needed(DISCORDANCE, rules.budget, rules.confidence)
    told = (
        f"to confirm {points(rules.budget)} at {percent(rules.confidence)}, the hold-out should have {enough} images "
        f"(if {DISCORDANCE:.0%} of the answers change; the more change, the more it takes); it has {images}"
    )
    if images < max(enough / 2, fewest(rules.budget, rules.confidence)) and not wanted.best_effort:
        most = rules.rungs[-1]
        in_all = min(-(-3 * enough // 2), enough + most)
        raise Unresolvable(
            f"{told}, less than half. Give about {in_all} images in all (a third of them, {most} at most, is used to "
            "search), allow more with --budget, or go on unconfirmed with --best-effort"
        )
    return told


def percent(confidence: float) -> str:
    """Write a confidence; one below 1 never looks like certainty."""
    return f"{100 * confidence:.15g}%"


def points(budget: float) -> str:
    """Write a share as points."""
    number = f"{100 * budget:g}"
    return f"{number} point{'' if number == '1' else 's'}"
