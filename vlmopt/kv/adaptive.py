"""VL-Cache's layer budgets: the less sparse a layer's attention, the more keys it keeps (arXiv 2410.23317)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .view import Probe

THRESHOLD = 0.01  # of a row's largest weight, below which a weight counts as zero
LEAST = 0.01  # share of its keys that every layer keeps


def sparsity(probe: Probe) -> Tensor:
    """Return fp32 [B]: share of visible entries of probed rows below a hundredth of their row's largest, over heads."""
    weights, rows = probe.weights, probe.rows[:, None, :, None]
    groups = probe.visible.shape[1]
    visible = (probe.visible & rows).repeat_interleave(weights.shape[1] // groups, 1)
    strong = visible & (weights >= THRESHOLD * weights.amax(-1, keepdim=True))
    return 1 - strong.sum((1, 2, 3)).float() / visible.sum((1, 2, 3)).clamp_min(1)


def adaptive(sparsity: Sequence[float], ratio: float, most: Sequence[float] | None = None) -> list[float]:
    """Return the share of its keys that each layer keeps, in proportion to 1 - sparsity; their mean is `ratio`.

    No layer keeps less than a hundredth (or `ratio`, if that is less) or more than it has; the paper clips alike, after
    which its mean is no longer the budget. Here the others share what is left.

    Args:
        most: share of its keys that each layer has, 0..1; None: all. In a later turn an eviction has been there. Where
            the layers together have less than the budget, all of it stays.
    """
    depth = len(sparsity)
    most = [1.0] * depth if most is None else most
    least = [min(LEAST, ratio, top) for top in most]
    fixed: dict[int, float] = {}
    while True:
        free = [i for i in range(depth) if i not in fixed]
        mass = sum(1 - sparsity[i] for i in free)
        left = ratio * depth - sum(fixed.values())
        ideal = {i: left * (1 - sparsity[i]) / mass if mass else left / len(free) for i in free}
        over = {i: most[i] for i in free if ideal[i] > most[i]}
        under = {i: least[i] for i in free if ideal[i] < least[i]}
        if not over and not under:
            return [fixed.get(i, ideal.get(i, 0.0)) for i in range(depth)]
        excess = sum(ideal[i] - top for i, top in over.items()) - sum(low - ideal[i] for i, low in under.items())
        fixed |= over if excess >= 0 and over else under
