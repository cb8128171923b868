"""PAI: make the row that predicts a token attend more to every visual token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmopt.core import setting

from .base import RowView, register
from .boost import Boost, boosted


@register("image_boost")
@dataclass(frozen=True, kw_only=True)
class ImageBoost(Boost):
    """Add alpha |z| to the logits z of all visual keys, in rows that predict a token (PAI).

    Paying More Attention to Image: A Training-Free Method for Alleviating Hallucination in LVLMs (arXiv 2407.21771).
    For the guidance of the paper set gamma to 1.1. The first token is boosted with or without guidance; the released
    code forgets it. Look at distinct-n next to any score: strong boosts make texts repeat themselves.
    """

    layers: str = setting("2:", "Decoder layers, as indices and slices; the paper's are all but the first two.", "str")
    alpha: float = setting(
        0.4, "Strength, as a fraction of |z|; the paper's are 0.2 to 0.6, by model.", "float", min=0, max=2
    )

    @property
    def boosts(self) -> bool:
        return self.alpha != 0

    def edit(self, values: Tensor, view: RowView) -> tuple[Tensor, Tensor]:
        return boosted(values, self.per_head(self.alpha, values, view.layer), view, view.image)
