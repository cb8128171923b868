"""The control that every method must beat: tokens drawn by lot, reproducibly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import ScoreSelector, register
from .tokens import VisualTokens


@register("random")
@dataclass(frozen=True, kw_only=True)
class Random(ScoreSelector):
    """Keep tokens drawn by lot, without replacement, in every image; the policy's seed alone decides.

    The lot is drawn over all visual tokens of the prompt, so a sample gets the same tokens alone and in a batch, and a
    deeper stage keeps a subset of an earlier one.
    """

    reads = "seed"

    def score(self, tokens: VisualTokens) -> Tensor:
        generator = torch.Generator().manual_seed(tokens.seed)
        lot = torch.randperm(tokens.total, generator=generator).float()
        return lot[tokens.ordinal.cpu()].to(tokens.ordinal.device)
