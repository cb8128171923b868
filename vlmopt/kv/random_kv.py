"""The control that every eviction must beat: keys drawn by lot, reproducibly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Eviction, register
from .view import KVView


@register("random_kv")
@dataclass(frozen=True, kw_only=True)
class RandomKV(Eviction):
    """Uniform choice without replacement in every layer and head; the policy's seed alone decides.

    A key's lot depends on its place in the sequence, not on the batch: a sample keeps the same keys alone and in one.
    """

    reads = "seed"

    def score(self, view: KVView) -> Tensor:
        generator = torch.Generator().manual_seed(view.seed)
        for _ in range(view.layer):  # a seed of its own per layer
            generator.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        places = view.places.clamp_min(0).expand(-1, view.heads, -1).transpose(1, 2)  # [B, n, Hk]
        lots = torch.rand(int(places.max()) + 1, view.heads, generator=generator, dtype=torch.float32).to(places.device)
        return lots.expand(len(places), -1, -1).gather(1, places).transpose(1, 2)
