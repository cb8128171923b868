"""Choose greedily tokens that are far from all chosen ones, and heavy: the core of the diversity selectors.

DivPrune (arXiv 2503.02175) without weights; ZOO-Prune (arXiv 2509.24837) with sensitivities as weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, threshold

RESOLUTION = 1e-6  # cosines this close are equal in fp32: copies of a chosen token must score exactly 0
HELD = 2**26  # cosines that are kept at once, 256 MiB
WORTH = 16  # products of a matrix with a vector that take as long as one of its rows among a product of matrices


def farthest(features: Tensor, k: int, weights: Tensor | None = None, first: Tensor | None = None) -> Tensor:
    """Return k tokens, each the argmax over the rest of weight_i * (1 - cosine of i to the nearest chosen token).

    O(n^2 d) once and O(k n) where the n x n cosines fit into `HELD` and k is large enough or the first token is sought;
    otherwise O(k n d), and the first token without weights O(n^2 d), with nothing of size n x n.

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
    cosines = None
    if n * n <= HELD and (k * WORTH >= n or (weights is None and first is None)) and exact():
        cosines = (unit @ unit.T).fill_diagonal_(-torch.inf)  # a chosen token is no candidate, whatever stands there
    if first is None and weights is not None:
        first = weights.argmax()
    elif first is None:
        first = most_isolated(unit) if cosines is None else lowest(cosines.amax(1))
    picked = torch.empty(k, dtype=torch.long, device=unit.device)
    taken = torch.zeros(n, dtype=torch.bool, device=unit.device)
    nearest = unit.new_full((n,), -1.0)
    latest = first.reshape(1)  # 1-dim: indexing with a 0-dim tensor reads it on the host
    for i in range(k):
        picked[i : i + 1] = latest
        taken.index_fill_(0, latest, True)
        if cosines is not None:
            row = cosines.index_select(0, latest)[0]
        else:
            row = torch.mv(unit, unit.index_select(0, latest)[0])
        nearest = torch.maximum(nearest, row)
        gain = threshold(1 - nearest, RESOLUTION, 0.0)
        if weights is not None:
            gain = gain * weights
        latest = gain.masked_fill(taken, -torch.inf).argmax(0, keepdim=True)
    return picked


def most_isolated(unit: Tensor, rows: int = 1024) -> Tensor:
    """Return 0-dim Long: the unit row [n, d] whose nearest other row is farthest, the lowest index in a tie."""
    nearest = []
    for start in range(0, len(unit), rows):
        cosines = unit[start : start + rows] @ unit.T
        cosines.diagonal(start).fill_(-torch.inf)
        nearest.append(cosines.amax(1))
    return lowest(torch.cat(nearest))


def lowest(closeness: Tensor) -> Tensor:
    """Return 0-dim Long: the first of the smallest of `closeness` [n]; two mutual neighbours tie, but for rounding."""
    return (closeness <= closeness.amin() + RESOLUTION).int().argmax()


def exact() -> bool:
    """Return whether products of fp32 matrices are in fp32; TF32 would tell copies apart."""
    return torch.get_float32_matmul_precision() == "highest"
