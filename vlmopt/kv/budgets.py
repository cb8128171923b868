"""How many keys a layer keeps: whole numbers per sample from a ratio and a way to share it between layers."""

from __future__ import annotations

from collections.abc import Sequence

from vlmopt.pruning.budget import kept_tokens

from .adaptive import adaptive
from .base import Eviction
from .pyramid import pyramid


def ratios(method: Eviction, depth: int, competing: int, sparsity: Sequence[float] | None) -> list[float]:
    """Return the share of its competing keys that every layer keeps in one sample.

    Args:
        depth: layers that evict. competing: keys that compete in each. sparsity: of each layer, for "adaptive".
    """
    if method.layer_budgets == "adaptive":
        assert sparsity is not None
        return adaptive(sparsity, method.keep_ratio)
    if method.layer_budgets == "pyramid":
        return pyramid(competing, method.keep_ratio, depth, method.recent)
    return [method.keep_ratio] * depth


def kept(competing: int, ratio: float) -> int:
    """Return how many of the competing keys stay: at least one where there is one."""
    return kept_tokens(competing, ratio, None) if competing else 0
