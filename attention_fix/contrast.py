"""Contrast of logits: move them away from what a second stream says, or towards it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def contrast(v: Tensor, n: Tensor, alpha: float, cutoff: float = 0.0) -> Tensor:
    """Return (1 + alpha) v - alpha n; ids below the fraction `cutoff` of the highest probability of v become -inf.

    Visual Contrastive Decoding (arXiv 2311.16922). Guidance (arXiv 2407.21771) is the same with gamma = 1 + alpha, and
    v + a l of AGLA (arXiv 2406.12718) with alpha = -a / (1 + a), at temperature 1 / (1 + a). Adding a constant to
    either stream changes no probability, so log-probabilities serve as well as logits.

    Args:
        v: logits [..., V] of the model itself, -inf for ids that are excluded already; what stays depends on these
            alone, and the likeliest always does. n: logits [..., V] of the second stream; rows of it that are not
            finite where v is are left out, so that v stands there.
        alpha: > -1; 0 gives v. cutoff: 0..1; 0 excludes nothing.

    Returns:
        fp32 [..., V].
    """
    v, n = v.float(), n.float()
    kept = v > -math.inf
    usable = (n.isfinite() | ~kept).all(-1, keepdim=True)
    z = torch.where(usable & kept, (1 + alpha) * v - alpha * n, v) if alpha else v
    return exclude(z, v, cutoff)


def exclude(z: Tensor, v: Tensor, cutoff: float) -> Tensor:
    """Return z with -inf where v lies below ln(cutoff) plus its highest value; all [..., V]."""
    return z.masked_fill(v < v.amax(-1, keepdim=True) + math.log(cutoff), -math.inf) if cutoff else z
