"""FastV: keep what the last prompt token attends to, in the layer before the cut."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmopt.core.settings import setting

from .base import ScoreSelector, register
from .released import OnePool
from .signals import AttentionRows, Signal
from .tokens import VisualTokens


@register("fastv")
@dataclass(frozen=True, kw_only=True)
class FastV(OnePool, ScoreSelector):
    """Keep the tokens with the highest attention of the last prompt row in layer `layer - 1`, mean over heads.

    An Image is Worth 1/2 Tokens After Layer 2 (FastV, arXiv 2403.06764). The paper speaks of all rows; its code reads
    the last one, as here. Several images share the budget before the ranking, so that recency does not decide it.
    """

    reads = "attention"
    query_aware = True
    trend = True

    layer: int = setting(
        2, "Tokens leave before this decoder layer; the attention of the layer before it decides.", "int", min=1
    )

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({AttentionRows(self.layer - 1)})

    def score(self, tokens: VisualTokens) -> Tensor:
        rows: Tensor = tokens.signals[AttentionRows(self.layer - 1)]
        return rows.float().mean((0, 1))  # [h, 1, n] -> [n]
