"""Keep what the last prompt token looks at, in the layer before the cut."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import AttentionRows, ScoreSelector, Signal, VisualTokens, register
from .settings import setting


@register("attention_topk")
@dataclass(frozen=True, kw_only=True)
class AttentionTopK(ScoreSelector):
    """Highest attention of the last prompt row in layer `layer - 1`, mean over heads.

    An Image is Worth 1/2 Tokens After Layer 2 (FastV, arXiv 2403.06764).
    """

    reads = "attention"

    layer: int = setting(
        2, "Tokens leave before this decoder layer; the attention of the layer before it decides.", "int", min=1
    )

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({AttentionRows(self.layer - 1)})

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.signals[AttentionRows(self.layer - 1)].float().mean((0, 1))  # [h, 1, n] -> [n]
