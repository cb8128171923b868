"""Choose greedily tokens that are far from all chosen ones, and heavy: the core of the diversity selectors.

DivPrune (arXiv 2503.02175) without weights; ZOO-Prune (arXiv 2509.24837) with sensitivities as weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, threshold

from .similarity import RESOLUTION, cosines

HELD = 2**26  # cosines that are kept at once, 256 MiB
WORTH = 16  # rows of a product of matrices that take as long as one product of a matrix with a vector


@torch.no_grad()  # a choice has no gradient
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
    held = None
    if holds(n, k, weights is None and first is None) and exact():
        held = cosines(unit)
    if first is None and weights is not None:
        first = weights.argmax()
    elif first is None:
        first = most_isolated(unit) if held is None else lowest(held.fill_diagonal_(-torch.inf).amax(1))
    latest = first.reshape(1)  # 1-dim: indexing with a 0-dim tensor reads it on the host
    if held is not None:
        gains(held, weights).fill_diagonal_(-torch.inf)  # a chosen token is not a candidate
    picked = [latest]
    nearest = unit.new_full((n,), torch.inf)
    for _ in range(k - 1):
        if held is not None:
            row = held.index_select(0, latest)[0]
        else:
            row = gains(torch.mv(unit, unit.index_select(0, latest)[0]), weights).index_fill_(0, latest, -torch.inf)
        torch.minimum(nearest, row, out=nearest)
        latest = nearest.argmax(0, keepdim=True)
        picked.append(latest)
    return torch.cat(picked)


def holds(n: int, k: int, first_sought: bool) -> bool:
    """Return whether all cosines of n tokens are made at once, to choose k; seeking the first takes all of them."""
    return n * n <= HELD and (first_sought or k * WORTH >= n)


def gains(alike: Tensor, weights: Tensor | None) -> Tensor:
    """Return weight_i * (1 - cosine) in place of the cosines [..., n].

    It is 0 for copies, whose cosines are 1 but for rounding.
    """
    far = threshold(alike.neg_().add_(1), RESOLUTION, 0.0, inplace=True)
    return far if weights is None else far.mul_(weights)


def most_isolated(unit: Tensor, rows: int = 1024) -> Tensor:
    """Return 0-dim Long: the unit row [n, d] whose nearest other row is farthest, the lowest index in a tie."""
    nearest = []
    for start in range(0, len(unit), rows):
        block = unit[start : start + rows] @ unit.T
        block.diagonal(start).fill_(-torch.inf)
        nearest.append(block.amax(1))
    return lowest(torch.cat(nearest))


def lowest(closeness: Tensor) -> Tensor:
    """Return 0-dim Long: the first of the smallest of `closeness` [n]; two mutual neighbours tie, but for rounding."""
    return (closeness <= closeness.amin() + RESOLUTION).int().argmax()


def exact() -> bool:
    """Return whether products of fp32 matrices are in fp32; TF32 would tell copies apart."""
    return torch.get_float32_matmul_precision() == "highest"
