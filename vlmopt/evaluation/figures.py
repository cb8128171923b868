"""From records to figures: every metric is a sum by a sum, over pictures, with intervals and a paired test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..metrics import Interval, wilson
from ..metrics.paired import compare, estimate
from .records import DENSE, Record

Fraction = tuple[float, float]  # numerator and denominator of one sample

# Metrics of which less is better; of the others more, except those of `NEUTRAL`, which are neither.
LESS = frozenset({"chair_s", "chair_i", "chair_unique_i", "unparsable", "repeated", "unended", "cut_off"})
NEUTRAL = frozenset({"yes_ratio", "length"})
# The first one that a run has is its headline.
PRIMARY = ("accuracy", "anls", "chair_i", "agreement")


def fractions(record: Record) -> dict[str, Fraction]:
    """The metrics that one answer has a share in.

    accuracy of everything marked right or wrong, anls; of yes/no questions precision, recall, f1 and yes_ratio as POPE
    defines them ("yes" is positive, yes_ratio the share of predicted "yes"); of captions CHAIR with chair_ before its
    names, length in words, distinct_n, and the shares repeated, unended and cut_off; unparsable.
    """
    found: dict[str, Fraction] = {}
    if record.correct is not None:
        found["anls" if record.kind == "anls" else "accuracy"] = (float(record.correct), 1.0)
    marks = record.metrics
    if record.kind == "yes_no" and record.correct is not None:
        yes, label = marks["yes"] is True, record.answer == "yes"
        found |= {
            "precision": (yes and label, yes),
            "recall": (yes and label, label),
            "f1": (2 * (yes and label), yes + label),
            "yes_ratio": (yes, 1),
        }
    if "said" in marks:
        found |= {
            "chair_s": (marks["false"] > 0, 1),
            "chair_i": (marks["false"], marks["said"]),
            "chair_unique_i": (marks["names"] - marks["found"], marks["names"]),
            "chair_recall": (marks["found"], marks["there"]),
            "chair_precision": (marks["found"], marks["names"]),
            "chair_f1": (2 * marks["found"], marks["names"] + marks["there"]),
        }
    if "words" in marks:
        found["length"] = (marks["words"], 1)
    for name in ("distinct_1", "distinct_4", "repeated", "unended", "cut_off", "unparsable"):
        if marks.get(name) is not None:
            found[name] = (marks[name], 1)
    return {name: (float(top), float(bottom)) for name, (top, bottom) in found.items()}


def agreement(record: Record, dense: Record | None) -> dict[str, Fraction]:
    """Whether a policy says what the unpruned model says, word for word."""
    if dense is None or record.prediction is None or dense.prediction is None:
        return {}
    return {"agreement": (float(record.prediction == dense.prediction), 1.0)}


def figures(
    records: Sequence[Record], dense: Mapping[str, Record], *, seed: int = 0
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Figures of one policy, and their differences from those of dense.

    Args:
        records: of the policy, one or more.
        dense: id -> record of dense; differences are taken over the samples in which both have a share.

    Returns:
        metric -> value, low, high (95 %), n (samples); and metric -> difference, low, high, p, n.
    """
    own = [(r.picture, fractions(r) | agreement(r, dense.get(r.id))) for r in records]
    values = {}
    for names, table, counts in _tables(own):
        for name, figure, n in zip(names, estimate(table, seed=seed), counts, strict=True):
            low, high = _ends(name, figure, len(table))
            values[name] = {"value": figure.value, "low": low, "high": high, "n": n}
    if records[0].policy == DENSE:
        return values, {}
    both = [(r.picture, _joined(fractions(dense[r.id]), fractions(r))) for r in records if r.id in dense]
    differences = {}
    for names, table, counts in _tables(both):
        for name, (found, p), n in zip(names, compare(table, seed=seed), counts, strict=True):
            differences[name] = {"difference": found.value, "low": found.low, "high": found.high, "p": p, "n": n}
    return values, differences


def _ends(name: str, figure: Interval, pictures: int) -> tuple[float, float]:
    """Where all pictures are alike a bootstrap has no width; Wilson's interval of as many marks stands in."""
    if figure.low == figure.high and figure.value in (0.0, 1.0) and name != "length":
        low, high = wilson(round(figure.value * pictures), pictures)
        return min(low, figure.value), max(high, figure.value)  # rounding may leave the value out
    return figure.low, figure.high


def _joined(first: Mapping[str, Fraction], second: Mapping[str, Fraction]) -> dict[str, tuple[float, ...]]:
    return {name: (*first[name], *parts) for name, parts in second.items() if name in first}


def _tables(
    rows: Sequence[tuple[str, Mapping[str, tuple[float, ...]]]],
) -> Iterator[tuple[list[str], np.ndarray, list[int]]]:
    """Metrics that the same pictures have a share in, sums [pictures, metrics, numbers], and samples per metric.

    Rows are (picture, metric -> numbers). Only pictures with a share are resampled.
    """
    sums: dict[str, dict[str, np.ndarray]] = {}
    counts: Counter[str] = Counter()
    for picture, parts in rows:
        for name, numbers in parts.items():
            of = sums.setdefault(name, {})
            of[picture] = of.get(picture, 0) + np.array(numbers)
            counts[name] += 1
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, of in sums.items():
        alike.setdefault(tuple(of), []).append(name)
    for pictures, names in alike.items():
        table = np.stack([[sums[name][picture] for name in names] for picture in pictures])
        yield names, table, [counts[name] for name in names]
