"""Measure how wrong a layer becomes that reads, at the last rows of a prompt, only what an earlier layer chose."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..kernels.patterns import Prefill

ROWS = 16  # last ones of the prompt, which stand for generated ones
RATIO = 0.0625  # of the keys that is chosen


class ReuseSearch:
    """One prompt, layer by layer, from the first that is shown on; nothing is kept but indices."""

    def __init__(self) -> None:
        self.chosen: dict[int, Tensor] = {}  # layer -> Long[Hk, R, k]

    def measure(self, layer: int, prefill: Prefill) -> Tensor:
        """Return fp64 [layer]: ||O - O_all||_1 / ||O_all||_1 with the choice of each layer before; NaN: not measured.

        Every key-value head has the keys that weigh most in any of its query heads, row by row.
        """
        errors = torch.full((layer,), torch.nan, dtype=torch.float64)
        rows, keys = prefill.q.shape[2], prefill.k.shape[2]
        if prefill.q.shape[0] != 1 or rows != keys or prefill.softcap is not None or not bool(prefill.real.all()):
            return errors
        query = prefill.q[0, :, -ROWS:].unflatten(0, (prefill.k.shape[1], -1)).float()  # [Hk, G, R, D]
        logits = query @ prefill.k[0, :, None].float().mT * prefill.scale
        place = torch.arange(keys, device=logits.device)
        later = place[None] > place[-query.shape[2] :, None]
        weights = logits.masked_fill(later, float("-inf")).softmax(-1)
        value = prefill.v[0, :, None].float()
        exact = weights @ value
        for other, index in self.chosen.items():
            here = torch.zeros_like(weights[:, 0], dtype=torch.bool).scatter_(-1, index, True)
            some = weights * here[:, None]
            out = (some / some.sum(-1, keepdim=True).clamp_min(1e-30)) @ value
            errors[other] = float((out - exact).abs().sum() / exact.abs().sum().clamp_min(1e-30))
        most = weights.amax(1)
        most[..., -query.shape[2] :] += torch.eye(query.shape[2], device=most.device)  # a row reads itself
        self.chosen[layer] = most.topk(math.ceil(keys * RATIO), sorted=False).indices
        return errors
