"""Estimate many figures at once, and compare two methods on the same images: difference, and chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .intervals import CHUNK, RESAMPLES, Interval, percentiles, ratios, resampled

MANY = 1_000  # images from which the intervals are narrow enough for fewer resamples
FEWER = 2_000
EQUAL = 1e-12  # rounding of sums in another order


class Comparison(NamedTuple):
    """The second method's ratio less the first's, and the two-sided probability of one as large by chance."""

    difference: Interval
    p: float


def estimate(table: np.ndarray, *, resamples: int | None = None, seed: int = 0) -> list[Interval]:
    """Return ratios of sums with percentile bootstrap intervals over images, all metrics on the same resamples.

    Args:
        table: [images, metrics, 2], numerator and denominator.

    Raises:
        ValueError: another shape, or no images.
    """
    table, resamples = _checked(table, 2, resamples)
    flat = table.reshape(len(table), -1)
    drawn = resampled(flat, resamples, seed)
    return [Interval(float(value), *percentiles(drawn[:, m])) for m, value in enumerate(ratios(flat.sum(0)))]


def compare(table: np.ndarray, *, resamples: int | None = None, seed: int = 0) -> list[Comparison]:
    """Return differences of ratios of sums, with percentile bootstrap intervals over images.

    The test is the paired permutation test: without a difference the two methods' sums of any image might as well be
    exchanged (Good, "Permutation, Parametric and Bootstrap Tests of Hypotheses", 2005). Both take the questions about
    one image together, which McNemar's test does not.

    Args:
        table: [images, metrics, 4], numerator and denominator of the first method, then of the second.
        resamples: of both; `RESAMPLES`, or fewer where there are many images.

    Raises:
        ValueError: another shape, or no images.
    """
    table, resamples = _checked(table, 4, resamples)
    flat = table.reshape(len(table), -1)
    observed = ratios(flat.sum(0)).reshape(-1, 2)
    drawn = resampled(flat, resamples, seed).reshape(resamples, -1, 2)
    p = _permuted(table, observed, resamples, seed)
    return [
        Comparison(Interval(float(after - before), *percentiles(drawn[:, m, 1] - drawn[:, m, 0])), float(p[m]))
        for m, (before, after) in enumerate(observed)
    ]


def holm(ps: Sequence[float]) -> list[float]:
    """Return probabilities adjusted for their number, so that all below a level hold together at that level.

    The step-down rule (Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979); it asks for no
    independence.
    """
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = least
    return adjusted


def _checked(table: np.ndarray, columns: int, resamples: int | None) -> tuple[np.ndarray, int]:
    table = np.asarray(table, dtype=np.float64)
    if table.ndim != 3 or table.shape[2] != columns or not len(table):
        raise ValueError(
            f"table has shape {table.shape}, expected [images, metrics, {columns}] with at least one image"
        )
    return table, resamples or (RESAMPLES if len(table) <= MANY else FEWER)


def _permuted(table: np.ndarray, observed: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return [metrics]: how often exchanging the methods image by image gives as large a difference."""
    first, second = table[..., :2].sum(0), table[..., 2:].sum(0)  # [metrics, 2]
    exchange = (table[..., 2:] - table[..., :2]).reshape(len(table), -1)
    distance = np.abs(observed[:, 1] - observed[:, 0]) - EQUAL
    rng, as_large = np.random.default_rng(seed), np.zeros(len(observed))
    for start in range(0, resamples, CHUNK):
        swapped = rng.integers(0, 2, (min(CHUNK, resamples - start), len(table))).astype(np.float64) @ exchange
        moved = swapped.reshape(len(swapped), -1, 2)
        a, b = (ratios(sums.reshape(len(sums), -1)) for sums in (first + moved, second - moved))
        as_large += (np.abs(b - a) >= distance).sum(0)
    return (as_large + 1) / (resamples + 1)
