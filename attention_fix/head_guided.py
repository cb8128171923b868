"""HGAI: make all heads of a middle layer look where its heads look on average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmopt.core import setting

from .base import RowCorrection, RowView, no_rows, register
from .boost import IMAGE_BOOST
from .watchdog import Watched


@register("head_guided")
@dataclass(frozen=True, kw_only=True)
class HeadGuided(Watched, RowCorrection):
    """Add alpha * mean over heads of |z| to the logits z of visual keys, the same for every head (HGAI).

    Devils in Middle Layers of Large Vision-Language Models: Interpreting, Detecting and Mitigating Object
    Hallucinations via Attention Lens (arXiv 2411.16724). The mean is over query heads.
    """

    stage: ClassVar[str] = "logits"
    rows: ClassVar[str] = "last"
    group: ClassVar[str] = IMAGE_BOOST

    layers: str = setting("16%:56%", "Decoder layers, as indices and slices; the paper's are 5..17 of 32.", "str")
    alpha: float = setting(0.5, "Strength, as a fraction of the mean over heads.", "float", min=0, max=2)

    @property
    def is_identity(self) -> bool:
        return self.alpha == 0

    def edit(self, values: Tensor, view: RowView) -> tuple[Tensor, Tensor]:
        if self.is_identity:
            return values, no_rows(values)
        chosen, size = view.sees(view.image), values.abs()
        if chosen.shape[1] > 1:  # masks of single heads: the mean is over those that see the key
            size = size * chosen
            heads = chosen.sum(1, keepdim=True).clamp(min=1)
            mean = size.sum(1, keepdim=True) / heads
        else:
            mean = size.mean(1, keepdim=True)
        after = torch.where(chosen, torch.add(values, mean, alpha=self.alpha), values)
        return after, view.sees_any(view.image).expand(values.shape[:3])
