"""Merge what attention makes of two sets of keys, by their log-sum-exps."""

from __future__ import annotations

import torch
from torch import Tensor


def merge(a: Tensor, lse_a: Tensor, b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Merge outputs [..., D] and log-sum-exps [...] into one softmax over both key sets.

    Where both are -inf: 0 and -inf.
    """
    lse = torch.logaddexp(lse_a, lse_b)
    finite = lse.clamp_min(torch.finfo(lse.dtype).min)  # -inf - -inf would be NaN
    weight_a, weight_b = ((x - finite).exp()[..., None] for x in (lse_a, lse_b))
    return (a * weight_a + b * weight_b).to(a.dtype), lse
