"""Choose greedily tokens that together stand for all others: the core of SCOPE and MMTok.

What the set S covers of a demand u is max over j in S of reach[j, u], at least 0; each step takes the token that adds
most (facility location). Gains only fall while S grows, so a gain of an earlier step bounds that of this one (Minoux,
Accelerated algorithms for maximizing submodular set functions, 1978).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import threshold

FEW = 16  # bounds that are renewed first, before a leader is trusted


def cover(reach: Tensor, k: int, weights: Tensor | None = None, resolution: float = 0.0) -> Tensor:
    """Return k tokens, each the argmax over the rest of weight_j * sum_u max(reach[j, u] - what is covered of u, 0).

    On a CPU only as many gains are computed as the choice needs, elsewhere all of them at each step, so that the host
    never waits. O(k n m) time at worst, and memory for a few rows (elsewhere: all) of `reach` besides itself.

    Args:
        reach: fp32 [n, m], how much of demand u the token j covers alone; what is below 0 never counts.
        k: 1..n.
        weights: fp32 [n] >= 0; 1 for all if None.
        resolution: differences of `reach` up to this are rounding.

    Returns:
        Long[k] in order of choice, no token twice; ties go to the lowest index.
    """
    n = len(reach)
    covered = reach.new_zeros(reach.shape[1])

    def gains(of: Tensor | None = None) -> Tensor:
        rows = reach if of is None else reach[of]
        sums = threshold(rows - covered, resolution, 0.0).sum(1)
        return sums if weights is None else sums * (weights if of is None else weights[of])

    bounds = gains()
    at = torch.zeros(n, dtype=torch.long)  # the step at which a bound was the gain itself
    picked = torch.empty(k, dtype=torch.long, device=reach.device)
    for i in range(k):
        few = FEW if reach.device.type == "cpu" else n
        while i:
            if few >= n:
                bounds = torch.minimum(bounds, gains())
                break
            leader = bounds.argmax(0, keepdim=True)
            if at[leader] == i or bounds[leader] <= 0:
                break
            stale = torch.cat([leader, bounds.topk(few).indices])
            bounds[stale] = torch.minimum(bounds[stale], gains(stale))  # of one that is taken it stays -inf
            at[stale] = i
            few *= 4
        latest = bounds.argmax(0, keepdim=True)  # 1-dim: a 0-dim index reads the host
        picked[i : i + 1] = latest
        bounds = bounds.index_fill(0, latest, -torch.inf)
        covered = torch.maximum(covered, reach.index_select(0, latest)[0])
    return picked
