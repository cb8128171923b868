"""How many keys a layer keeps: whole numbers per sample from a ratio and a way to share it between layers."""

from __future__ import annotations

from vlmopt.pruning.budget import kept_tokens

from .base import Eviction
from .pyramid import pyramid


def ratios(method: Eviction, depth: int, competing: int) -> list[float]:
    """Return the share of its competing keys that every layer keeps in one sample, unless that is "adaptive".

    Args:
        depth: layers that evict. competing: keys that compete in each.
    """
    if method.layer_budgets == "pyramid":
        return pyramid(competing, method.keep_ratio, depth, method.recent)
    return [method.keep_ratio] * depth


def kept(competing: int, ratio: float) -> int:
    """Return how many of the competing keys stay: at least one where there is one."""
    return kept_tokens(competing, ratio, None) if competing else 0
