"""KeyDiff: keep the keys that are least like the others; no attention, no question."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Eviction, register
from .view import KVView


@register("key_diff")
@dataclass(frozen=True, kw_only=True)
class KeyDiff(Eviction):
    """Least cosine to the mean of the normalised keys, per head.

    KeyDiff: Key Similarity-Based KV Cache Eviction (arXiv 2504.15364). The keys are read as they are stored, after
    rotation. Nothing of the question is read, so a cache serves several questions about one image or video.
    """

    reads = "keys"

    def score(self, view: KVView) -> Tensor:
        return -likeness(view)


def likeness(view: KVView) -> Tensor:
    """Return fp32 [B, Hk, n]: cosine of every key to the mean of the head's normalised keys; 0 on padding."""
    unit = view.unit_keys()
    mean = unit.sum(2, keepdim=True)  # a cosine does not mind the length
    mean = mean / mean.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    cosine: Tensor = (unit @ mean.mT).squeeze(-1)
    return cosine
