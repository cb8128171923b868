"""What the diversity selectors share: scores stretched to 0..1, and the greedy choice of the largest volume."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

POOLING = ("mean", "max")
RESOLUTION = 1e-6  # differences of fp32 cosines below this are rounding
BLOCK = 256  # rows of a block of cosines


def cosines(unit: Tensor) -> Tensor:
    """Return fp32 [n, n]: products of unit rows [n, d].

    On a CPU blocks below the diagonal are mirrored, not computed.
    """
    n = len(unit)
    if n <= BLOCK or unit.device.type != "cpu":
        return unit @ unit.T
    out = unit.new_empty(n, n)
    for start in range(0, n, BLOCK):
        end = start + BLOCK
        out[start:end, start:] = unit[start:end] @ unit[start:].T
        out[end:, start:end] = out[start:end, end:].T
    return out


def min_max(scores: Tensor, offset: float = 0.0) -> Tensor:
    """Return fp32 [n]: (scores - min + offset) / (max - min); all 1 if they are equal up to rounding of cosines."""
    low, high = scores.float().aminmax()
    spread = high - low
    flat = spread <= RESOLUTION
    return torch.where(flat, 1.0, (scores.float() - low + offset) / torch.where(flat, 1.0, spread))


def largest_volume(features: Tensor, k: int, weights: Tensor | None = None) -> Tensor:
    """Return k tokens that greedily maximise det L_S, L_ij = w_i w_j cos(i, j): the mode of a DPP.

    Fast Greedy MAP Inference for Determinantal Point Process to Improve Recommendation Diversity (arXiv 1709.05135):
    one row of L and one of its Cholesky factor per step, O(k n (d + k)) time, O(n (d + k)) memory, nothing n x n.

    Args:
        features: [n, d], any dtype and length of rows. k: 1..n.
        weights: [n] >= 0; 1 for all if None.

    Returns:
        Long[k] in order of choice, no token twice; ties, and tokens that add no volume, by lowest index.
    """
    rows, n = normalize(features.float(), dim=1), len(features)
    # gain: the factor by which each token would multiply det L_S; at first exactly w^2, or rounding would break ties.
    gain = rows.any(1).float()
    if weights is not None:
        rows, gain = rows * weights.float()[:, None], gain * weights.float().square()
    least = (RESOLUTION * gain.amax()).clamp_min(1e-30)  # beyond the rank of the features pivots are rounding
    factor = rows.new_zeros(k, n)
    picked = torch.empty(k, dtype=torch.long, device=rows.device)
    taken = torch.zeros(n, dtype=torch.bool, device=rows.device)
    for i in range(k):
        latest = gain.masked_fill(taken, -torch.inf).argmax(0, keepdim=True)  # 1-dim: a 0-dim index reads the host
        picked[i : i + 1] = latest
        taken.index_fill_(0, latest, True)
        kernel = torch.mv(rows, rows.index_select(0, latest)[0])
        kernel = kernel - factor[:i].index_select(1, latest)[:, 0] @ factor[:i]
        pivot = gain.index_select(0, latest)
        factor[i] = kernel / pivot.clamp_min(least).sqrt()
        gain = gain - factor[i].square()
        gain = torch.where(gain > least, gain, 0.0)
    return picked


def pooled(cells: Tensor, words: Tensor, pooling: str, mask: Tensor | None = None) -> Tensor:
    """Return products of cells [..., M, d] with words [..., n, d], mean or maximum over the words -> [..., M].

    Args:
        mask: Bool[..., n], False on words that do not count.
    """
    if pooling == "max":
        products = cells @ words.transpose(-1, -2)
        return (products if mask is None else products.masked_fill(~mask[..., None, :], -torch.inf)).amax(-1)
    mean = words.mean(-2) if mask is None else (words * mask[..., None]).sum(-2) / mask.sum(-1, keepdim=True)
    return (cells @ mean[..., None])[..., 0]


def rank(scores: Tensor) -> Tensor:
    """Return fp32 [n] in 0..1: the share of other scores [n] that are lower; equal scores share a rank."""
    order = scores.sort().values
    return torch.searchsorted(order, scores.contiguous()).float() / max(len(scores) - 1, 1)
