"""What is certain about a mean difference from dense, and how many images it takes to know it.

A difference is the mark of a policy less that of dense, mean over the questions about one image: -1 to 1, and images
are drawn alike. Bounds are one-sided.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

QUARTER = 0.25  # share of a discordant pair that is added to the sum of squares: equal answers are not certainty
LOSS = 2 / 3  # of a lost image, added to those that were seen
POWER = 0.8  # chance to confirm a policy that loses nothing
HALVINGS = 60


def quantile(confidence: float) -> float:
    """Return the standard normal quantile.

    Raises:
        ValueError: confidence not between one half and 1.
    """
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must lie between 0.5 and 1, such as 0.95; got {confidence!r}")
    return NormalDist().inv_cdf(confidence)


def reach(differences: np.ndarray, confidence: float) -> float:
    """Return how far the mean of [n] may lie from the truth: z s / sqrt(n), of positive width for equal answers."""
    n = len(differences)
    variance = (float(((differences - differences.mean()) ** 2).sum()) + QUARTER) / n
    return quantile(confidence) * math.sqrt(variance / n)


def loses_less(differences: np.ndarray, budget: float, confidence: float) -> bool:
    """Return whether the truth behind [n] differences is a loss of at most `budget`, 0 to 1, at this confidence.

    The normal bound says so, and with it empirical likelihood (Owen, "Empirical likelihood ratio confidence intervals
    for a single functional", 1988), which knows that rare losses are skewed: where few are seen, the normal bound errs
    more often than it says. Two thirds of a loss that nobody saw make it the exact bound of a Poisson count up to third
    order where nothing is won, and keep it from certainty where nothing is lost.
    """
    if budget >= 1:
        return True  # no image can lose more than its mark
    if not len(differences) or float(differences.mean()) - reach(differences, confidence) < -budget:
        return False
    values, counts = np.unique(np.append(differences, -1.0), return_counts=True)
    weights = counts.astype(np.float64)
    weights[0] += LOSS - 1  # the least value is -1
    return likelihood_ratio(values + budget, weights) >= quantile(confidence) ** 2 / 2


def likelihood_ratio(values: np.ndarray, weights: np.ndarray) -> float:
    """Return how much likelier the weighted values are than with mean 0, as a logarithm; 0 where their mean is below.

    Args:
        values: [m] different ones, some below 0. weights: [m], how often each was seen.
    """
    if float((weights * values).sum()) <= 0:
        return 0.0
    low, high = 0.0, -1.0 / float(values.min())
    for _ in range(HALVINGS):  # the sum of logarithms is concave: its slope changes sign once
        middle = (low + high) / 2
        rising = float((weights * values / (1 + middle * values)).sum()) > 0
        low, high = (middle, high) if rising else (low, middle)
    return float((weights * np.log1p(low * values)).sum())


def lower_bound(differences: np.ndarray, confidence: float) -> float:
    """Return the least mean that [n] differences leave possible: minus the smallest budget that they confirm."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if loses_less(differences, middle, confidence) else (middle, high)
    return -high


def upper_bound(differences: np.ndarray, confidence: float) -> float:
    """Return the largest mean that [n] differences leave possible."""
    return min(1.0, float(differences.mean()) + reach(differences, confidence))


def needed(discordance: float, budget: float, confidence: float) -> int:
    """Return how many images confirm, in four of five cases, a policy that loses nothing.

    Args:
        discordance: mean square of the differences; with one question per image, the share answered differently.
        budget: above 0.
    """
    by_variance = ((quantile(confidence) + NormalDist().inv_cdf(POWER)) / budget) ** 2 * discordance
    return max(math.ceil(by_variance), fewest(budget, confidence))


def fewest(budget: float, confidence: float) -> int:
    """Return how many images it takes to confirm a policy that changes no answer.

    Raises:
        ValueError: a budget of 0, which no number of images confirms.
    """
    if not budget > 0:
        raise ValueError(f"budget must be above 0: no number of images shows that nothing is lost; got {budget:g}")
    many = 1
    while not loses_less(np.zeros(many), budget, confidence):
        many *= 2
    least = many // 2
    while many - least > 1:
        middle = (many + least) // 2
        least, many = (least, middle) if loses_less(np.zeros(middle), budget, confidence) else (middle, many)
    return many
