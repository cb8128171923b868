"""MixKV: importance alone keeps many keys that say the same; a head with similar keys gets diversity mixed in.

Mixing Importance with Diversity: Joint Optimization for KV Cache Compression in Large Vision-Language Models
(MixKV, arXiv 2510.20707).
"""

from __future__ import annotations

from torch import Tensor

from .key_diff import likeness
from .view import KVView


def mixed(view: KVView, importance: Tensor) -> Tensor:
    """Compute L * diversity + (1 - L) * (importance + norm of the value), L = `redundancy` per sample and head.

    Diversity is the negative cosine to the mean key. It and the norm are stretched to 0..1 over the real keys and then
    scaled to the mean of the importance, so that the three can be added.

    Args:
        importance: fp32 [B, Hk, n] >= 0.

    Returns:
        fp32 [B, Hk, n].
    """
    real = view.real.expand(importance.shape)
    level = mean(importance, real)
    diversity = scaled(-likeness(view), real, level)
    norms = scaled(view.values.float().norm(dim=-1), real, level)
    weight = redundancy(view).clamp(0, 1)[..., None]
    return weight * diversity + (1 - weight) * (importance + norms)


def redundancy(view: KVView) -> Tensor:
    """Return fp32 [B, Hk]: mean cosine of two different keys of a head, in linear time; 0 with fewer than two keys.

    The squared norm of the mean normalised key is the mean over all pairs; those of a key with itself are taken out.
    """
    count = view.real.expand(-1, view.heads, -1).sum(-1)
    total = view.unit_keys().sum(2).square().sum(-1)  # over all ordered pairs
    return (total - count) / (count * (count - 1)).clamp_min(1)


def scaled(values: Tensor, real: Tensor, level: Tensor) -> Tensor:
    """Return values stretched to 0..1 over the real keys, then scaled to a mean of `level` [B, Hk, 1]."""
    low = values.masked_fill(~real, float("inf")).amin(-1, keepdim=True)
    high = values.masked_fill(~real, float("-inf")).amax(-1, keepdim=True)
    stretched = ((values - low) / (high - low).clamp_min(1e-12)).masked_fill(~real, 0)
    return stretched * (level / mean(stretched, real).clamp_min(1e-12))


def mean(values: Tensor, real: Tensor) -> Tensor:
    """Return the mean over the real keys, [B, Hk, 1]."""
    return values.masked_fill(~real, 0).sum(-1, keepdim=True) / real.sum(-1, keepdim=True).clamp_min(1)
