"""Greedy choice of tokens that are far from all chosen ones, and heavy: the core of the diversity selectors.

DivPrune (arXiv 2503.02175) without weights; ZOO-Prune (arXiv 2509.24837) with sensitivities as weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, threshold

RESOLUTION = 1e-6  # cosines this close are equal in fp32: copies of a chosen token must score exactly 0


def farthest(features: Tensor, k: int, weights: Tensor | None = None, first: Tensor | None = None) -> Tensor:
    """k tokens, each the argmax over the rest of weight_i * (1 - cosine of i to the nearest token chosen so far).

    O(k n d) and nothing of size n x n, but for the first token without weights, which costs O(n^2 d) once.

    Args:
        features: [n, d], any dtype and length of rows; a zero row is at distance 1 from everything.
        k: 1..n.
        weights: fp32 [n] >= 0; 1 for all if None.
        first: 0-dim Long, the token to start with; else the heaviest, or without weights the one whose nearest
            neighbour is farthest.

    Returns:
        Long[k] in order of choice, no token twice; ties go to the lowest index.

    Raises:
        ValueError: k outside 1..n.
    """
    n = len(features)
    if not 1 <= k <= n:
        raise ValueError(f"k must be within 1..{n}, the number of features, got {k}")
    unit = normalize(features.float(), dim=1)
    if first is None:
        first = most_isolated(unit) if weights is None else weights.argmax()
    picked = torch.empty(k, dtype=torch.long, device=unit.device)
    taken = torch.zeros(n, dtype=torch.bool, device=unit.device)
    nearest = unit.new_full((n,), -1.0)
    latest = first.reshape(1)  # 1-dim: indexing with a 0-dim tensor reads it on the host
    for i in range(k):
        picked[i : i + 1] = latest
        taken.index_fill_(0, latest, True)
        nearest = torch.maximum(nearest, torch.mv(unit, unit.index_select(0, latest)[0]))
        gain = threshold(1 - nearest, RESOLUTION, 0.0)
        if weights is not None:
            gain = gain * weights
        latest = gain.masked_fill(taken, -torch.inf).argmax(0, keepdim=True)
    return picked


def most_isolated(unit: Tensor, rows: int = 1024) -> Tensor:
    """0-dim Long: the unit row [n, d] whose nearest other row is farthest, the lowest index in a tie."""
    nearest = []
    for start in range(0, len(unit), rows):
        cosines = unit[start : start + rows] @ unit.T
        cosines.diagonal(start).fill_(-torch.inf)
        nearest.append(cosines.amax(1))
    closeness = torch.cat(nearest)
    return (closeness <= closeness.amin() + RESOLUTION).int().argmax()  # two mutual neighbours tie, but for rounding
