"""How sure a figure is: intervals of fractions and of ratios of sums, and of the difference of two methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
CHUNK = 500  # resamples at a time
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # 97.5 % quantiles of t for 1, 2, ... degrees


class Interval(NamedTuple):
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class McNemar(NamedTuple):
    """Items that only the first or only the second got right, and the exact two-sided probability of such a split."""

    only_first: int
    only_second: int
    p: float


def wilson(right: float, of: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a fraction (Wilson, 1927), never of width 0; `right` need not be whole."""
    if of < 1 or not 0 <= right <= of:
        raise ValueError(f"{right} of {of} is not a fraction: `of` must be 1 or more, `right` from 0 to `of`")
    p, n = right / of, float(of)
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - spread) / (1 + z * z / n)), min(1.0, (middle + spread) / (1 + z * z / n))


def wilson_difference(gain: float, loss: float, images: int) -> tuple[float, float]:
    """Return the 95 % interval of `gain - loss`, a paired difference of fractions over few images; never of width 0.

    Wilson's intervals of both, with images for trials, combined by the recovery of variances (Zou and Donner,
    "Construction of confidence limits about effect measures", 2008); no image can become better and worse.

    Args:
        gain, loss: what the images that became better, and worse, add to the difference and take from it, 0 to 1.
    """
    (gain_low, gain_high), (loss_low, loss_high) = (wilson(part * images, images) for part in (gain, loss))
    rest = (1 - gain) * (1 - loss)
    opposed = min(1.0, math.sqrt(gain * loss / rest)) if rest > 0 else 1.0  # less their correlation

    def spread(one: float, other: float) -> float:
        return math.sqrt(one**2 + other**2 + 2 * opposed * one * other)

    down, up = spread(gain - gain_low, loss_high - loss), spread(gain_high - gain, loss - loss_low)
    return max(-1.0, gain - loss - down), min(1.0, gain - loss + up)


def t_interval(values: np.ndarray, weights: np.ndarray, floor: float) -> tuple[float, float]:
    """Return the 95 % interval of sum(values) / sum(weights), both [n], by Student's t over images (Student, 1908).

    Args:
        floor: the least variance of the sum of values, so that equal images are not taken for certainty.
    """
    n, whole = len(values), max(float(weights.sum()), 1e-12)
    rest = values - values.sum() / whole * weights
    variance = max(floor, n / max(n - 1, 1) * float((rest**2).sum()))
    middle, spread = (
        float(values.sum()) / whole,
        STUDENT[min(n - 1, len(STUDENT)) - 1 if n > 1 else 0] * math.sqrt(variance),
    )
    return middle - spread / whole, middle + spread / whole


def ratio_interval(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the sum of `numerators` by that of `denominators`, both [n], one entry per image, with its interval.

    Accuracy, precision, recall, F1 = 2TP / (2TP + FP + FN) and CHAIR are all such ratios. Percentile bootstrap over
    images.
    """
    pairs = columns_of(numerators, denominators)
    values = resampled(pairs, resamples, seed)
    return Interval(float(ratios(pairs.sum(0))[0]), *percentiles(values[:, 0]))


def mean_interval(values: Sequence[float] | np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the mean of [n] with its percentile bootstrap interval."""
    return ratio_interval(values, np.ones(len(values)), resamples=resamples, seed=seed)


def paired_difference(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the ratio of `second` less that of `first`, with its interval.

    Each is (numerators [n], denominators [n]) on the same n images.
    """
    pairs = columns_of(*first, *second)
    values = resampled(pairs, resamples, seed)
    before, after = ratios(pairs.sum(0))
    return Interval(float(after - before), *percentiles(values[:, 1] - values[:, 0]))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Return the exact test of two methods' marks on the same items (McNemar, 1947); p is 1 if they never differ."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} marks: both methods need the same items")
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    differ, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(differ, k) for k in range(fewer + 1)) / 2**differ
    return McNemar(only_first, only_second, min(1.0, 2 * tail))


def columns_of(*columns: Sequence[float] | np.ndarray) -> np.ndarray:
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 1 or not len(arrays[0]):
        raise ValueError(f"shapes {[a.shape for a in arrays]}: one entry per image, the same in every column")
    return np.stack(arrays, axis=1)


def ratios(sums: np.ndarray) -> np.ndarray:
    """Map sums [..., 2 * m], numerator and denominator in turn, to ratios [..., m]; 0 without a denominator."""
    top, bottom = sums[..., ::2], sums[..., 1::2]
    shares: np.ndarray = np.divide(top, bottom, out=np.zeros_like(top), where=bottom != 0)
    return shares


def resampled(pairs: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Map pairs [n, 2 * m] to ratios of resampled sums [resamples, m]."""
    rng, n = np.random.default_rng(seed), len(pairs)
    parts = []
    for start in range(0, resamples, CHUNK):
        times = rng.multinomial(n, np.full(n, 1 / n), size=min(CHUNK, resamples - start))
        parts.append(ratios(times @ pairs))
    return np.concatenate(parts)


def percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
