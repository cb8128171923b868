"""Turn records into figures: every metric is a sum by a sum, over images, with intervals and a paired test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..metrics import Interval, wilson
from ..metrics.answers import plain
from ..metrics.intervals import t_interval, wilson_difference
from ..metrics.paired import compare, estimate
from ..metrics.stated import stated
from .records import DENSE, Record

FEW = 10  # images from which a bootstrap over them is given
BOOTSTRAP, WILSON, STUDENTS = "bootstrap over images", "Wilson over images", "Student's t over images"
CERTAIN = "by definition"  # dense agrees with itself
UNBOUNDED = frozenset({"length"})  # metrics that are no fractions

Fraction = tuple[float, float]  # numerator and denominator of one sample

# Metrics of which less is better; of the others more, except those of `NEUTRAL`, which are neither.
LESS = frozenset({"chair_s", "chair_i", "chair_unique_i", "unparsable", "repeated", "unended", "cut_off"})
NEUTRAL = frozenset({"yes_ratio", "length"})
# The first one that a run has is its headline.
PRIMARY = ("accuracy", "anls", "judged", "chair_i", "agreement")


def fractions(record: Record) -> dict[str, Fraction]:
    """Return the metrics that one answer has a share in.

    accuracy of everything marked right or wrong, anls; of open answers judged; of yes/no questions precision, recall,
    f1 and yes_ratio as POPE defines them ("yes" is positive, yes_ratio the share of predicted "yes"); of captions CHAIR
    with chair_ before its names, length in words, distinct_n, and the shares repeated, unended and cut_off; unparsable.
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
    if "judged" in marks:
        found["judged"] = (marks["judged"], 1)
    if "words" in marks:
        found["length"] = (marks["words"], 1)
    for name in ("distinct_1", "distinct_4", "repeated", "unended", "cut_off", "unparsable"):
        if marks.get(name) is not None:
            found[name] = (marks[name], 1)
    return {name: (float(top), float(bottom)) for name, (top, bottom) in found.items()}


def agreement(record: Record, dense: Record | None) -> dict[str, Fraction]:
    """Return whether a policy states what the unpruned model states; another style is no other answer."""
    if dense is None or record.prediction is None or dense.prediction is None:
        return {}
    same = record.prediction == dense.prediction or substance(record) == substance(dense)
    return {"agreement": (float(same), 1.0)}


def substance(record: Record) -> Any:
    """Return what an answer states: the choice, or the yes or no that was read; else its words in plain style."""
    read = (record.extra.get("chosen"), record.metrics.get("yes")) if record.metrics.get("unparsable") is False else ()
    words = plain(stated(record.prediction or ""))
    return next((value for value in read if value is not None), words)


def figures(
    records: Sequence[Record], dense: Mapping[str, Record], *, seed: int = 0
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return the figures of one policy, and their differences from those of dense.

    Args:
        records: of the policy, one or more.
        dense: id -> record of dense; differences are taken over the samples in which both have a share.

    Returns:
        metric -> value, low, high (95 %), n (samples), pictures (how many images have a share), interval (its name in
        words); and metric -> difference, low, high, p, n. A bootstrap over fewer than `FEW` images is too narrow, and
        has no width at all where images are alike: there stands Wilson's interval with images for trials, or Student's.
    """
    own = [(r.picture, fractions(r) | agreement(r, dense.get(r.id))) for r in records]
    values = {}
    for names, table, counts in _tables(own):
        for number, (name, figure, n) in enumerate(zip(names, estimate(table, seed=seed), counts, strict=True)):
            images = max(int((table[:, number, 1] > 0).sum()), 1)
            low, high, how = _ends(name, figure, table[:, number], images)
            if name == "agreement" and records[0].policy == DENSE:
                low, high, how = figure.value, figure.value, CERTAIN
            values[name] = {
                "value": figure.value, "low": low, "high": high, "n": n, "pictures": images, "interval": how,
            }  # fmt: skip
    return values, {} if records[0].policy == DENSE else differences(records, dense, seed=seed)


def differences(records: Sequence[Record], base: Mapping[str, Record], *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Return metric -> difference from `base` (id -> record), low, high, p, n, where both have a share in it."""
    both = [(r.picture, _joined(fractions(base[r.id]), fractions(r))) for r in records if r.id in base]
    found = {}
    for names, table, counts in _tables(both):
        for number, (name, (moved, p), n) in enumerate(zip(names, compare(table, seed=seed), counts, strict=True)):
            low, high = _apart(name, moved, table[:, number])
            found[name] = {"difference": moved.value, "low": low, "high": high, "p": p, "n": n}
    return found


def agreements(records: Sequence[Record], base: Mapping[str, Record], *, seed: int = 0) -> dict[str, Any] | None:
    """Return how often answers state what those of `base` state, as a metric; None where nothing was answered."""
    both = [(r.picture, {"agreement": found["agreement"]}) for r in records if (found := agreement(r, base.get(r.id)))]
    for _, table, counts in _tables(both):
        (figure,), images = estimate(table, seed=seed), len(table)
        low, high, how = _ends("agreement", figure, table[:, 0], images)
        return {"value": figure.value, "low": low, "high": high, "n": counts[0], "pictures": images, "interval": how}
    return None


def _ends(name: str, figure: Interval, table: np.ndarray, images: int) -> tuple[float, float, str]:
    """Return ends and name of the interval of one metric; table: [images, 2], of which `images` have a share."""
    if images >= FEW and figure.low < figure.high:
        return figure.low, figure.high, BOOTSTRAP
    if name in UNBOUNDED:
        return *t_interval(table[:, 0], table[:, 1], floor=float(table[:, 0].sum())), STUDENTS
    low, high = wilson(figure.value * images, images)
    return min(low, figure.value), max(high, figure.value), WILSON  # rounding of 1.96 may leave the value out


def _apart(name: str, found: Interval, table: np.ndarray) -> tuple[float, float]:
    """Return the ends of the interval of a difference; table: [images, 4], of dense and of the policy."""
    images = max(int(((table[:, 1] > 0) | (table[:, 3] > 0)).sum()), 1)
    if images >= FEW and found.low < found.high:
        return found.low, found.high
    if name in UNBOUNDED:
        floor = float(table[:, 0].sum() + table[:, 2].sum())
        return t_interval(table[:, 2] - table[:, 0], (table[:, 1] + table[:, 3]) / 2, floor)
    whole = table.sum(0)
    parts = table[:, 2] / max(whole[3], 1e-12) - table[:, 0] / max(whole[1], 1e-12)  # they add up to the difference
    gain, loss = (min(1.0, float(np.clip(sign * parts, 0, None).sum())) for sign in (1, -1))
    low, high = wilson_difference(gain, loss, images)
    return min(low, found.value), max(high, found.value)


def _joined(first: Mapping[str, Fraction], second: Mapping[str, Fraction]) -> dict[str, tuple[float, ...]]:
    return {name: (*first[name], *parts) for name, parts in second.items() if name in first}


def _tables(
    rows: Sequence[tuple[str, Mapping[str, tuple[float, ...]]]],
) -> Iterator[tuple[list[str], np.ndarray, list[int]]]:
    """Yield metrics that the same images have a share in, sums [images, metrics, numbers], and samples per metric.

    Rows are (image, metric -> numbers). Only images with a share are resampled.
    """
    sums: dict[str, dict[str, np.ndarray]] = {}
    counts: Counter[str] = Counter()
    for image, parts in rows:
        for name, numbers in parts.items():
            of = sums.setdefault(name, {})
            of[image] = of.get(image, 0) + np.array(numbers)
            counts[name] += 1
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, of in sums.items():
        alike.setdefault(tuple(of), []).append(name)
    for images, names in alike.items():
        table = np.stack([[sums[name][image] for name in names] for image in images])
        yield names, table, [counts[name] for name in names]
