"""What a search promises, and what it works with: the rules, a cost, and what was seen of a candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .bounds import lower_bound, quantile, upper_bound

Marks = Mapping[str, np.ndarray]  # mark -> differences from dense [images], -1 to 1, more is better
DENSE = "dense"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The promise: with `confidence`, the policy that comes out loses at most `budget` in every mark.

    Attributes:
        budget: 0 to 1, a hundredth is a point.
        rungs: images after which the race looks again; the last is the most that it uses.
        finalists: candidates that are confirmed at most.

    Raises:
        ValueError: a number out of range.
    """

    budget: float
    confidence: float = 0.95
    rungs: tuple[int, ...] = (64, 128, 256, 512)
    finalists: int = 4

    def __post_init__(self) -> None:
        quantile(self.confidence)
        if not 0 <= self.budget <= 1:
            raise ValueError(f"budget must be 0 to 100 points, got {100 * self.budget:g}")

    def looks(self, images: int) -> list[int]:
        """Return after how many of the images the race looks; one that adds less than a quarter is left out."""
        last = min(images, self.rungs[-1])
        return [*(rung for rung in self.rungs if 1.25 * rung <= last), last]


@dataclass(frozen=True)
class Cost:
    """What a candidate costs, as a share of dense, with the 20th and 80th percentile of repeated rounds."""

    ratio: float
    low: float
    high: float

    @classmethod
    def exact(cls, ratio: float) -> Cost:
        return cls(ratio, ratio, ratio)


@dataclass(frozen=True)
class Seen:
    """What some images say about a candidate, of the mark that loses most; `low` and `high` are one-sided bounds."""

    images: int
    mark: str
    difference: float
    low: float
    high: float

    @classmethod
    def of(cls, marks: Marks, confidence: float) -> Seen:
        name = worst(marks)
        own = marks[name]
        return cls(
            len(own), name, float(own.mean()), lower_bound(own, confidence), upper_bound(own, confidence)
        )  # fmt: skip


def worst(marks: Marks) -> str:
    """Return the mark that loses most; the first of those that lose alike."""
    return min(marks, key=lambda name: float(marks[name].mean()))


def loss(marks: Marks) -> float:
    """Return the loss in the mark that loses most; below 0 where all gain."""
    return -float(marks[worst(marks)].mean())
