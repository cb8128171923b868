"""DivPrune: keep tokens that are as far from each other as possible."""

from __future__ import annotations

from dataclasses import dataclass

from vlmopt.core.settings import setting

from .base import register
from .greedy import farthest
from .released import OnePool, Renumbered
from .signals import Signal, VisualEmbeds
from .tokens import Selection, VisualTokens


@register("div_prune")
@dataclass(frozen=True, kw_only=True)
class DivPrune(Renumbered, OnePool):
    """Keep the token whose nearest neighbour is farthest, then always the one farthest from all that are kept.

    DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models (arXiv 2503.02175): greedy max-min of
    1 - cos(z_i, z_j) over projector outputs z. A chosen token is never a candidate again, and row separators are no
    candidates at all; in the paper's flattened block they are.
    """

    reads = "embeddings"

    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    paper_compat: bool = setting(
        False,
        "As released: one pool for all images, halves rounded to the even number, survivors renumbered.",
        "bool",
    )

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({VisualEmbeds()})

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        return Selection(farthest(tokens.signals[VisualEmbeds()], k).sort().values)
