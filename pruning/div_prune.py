"""DivPrune: tokens as far from each other as possible."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Selector, register
from .greedy import farthest
from .settings import setting
from .signals import Signal, VisualEmbeds
from .tokens import Selection, VisualTokens


@register("div_prune")
@dataclass(frozen=True, kw_only=True)
class DivPrune(Selector):
    """Starts at the token whose nearest neighbour is farthest, adds the one farthest from its nearest chosen token.

    DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models (arXiv 2503.02175): greedy max-min of
    1 - cos(z_i, z_j) over projector outputs z. A chosen token is never a candidate again, and row separators are no
    candidates at all; in the paper's flattened block they are.
    """

    reads = "embeddings"

    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    paper_compat: bool = setting(
        False, "As released: one pool for all pictures, halves rounded to the even number.", "bool"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.paper_compat:
            object.__setattr__(self, "allocation", "global")

    def budget(self, total: int) -> int:
        if self.paper_compat and self.keep_ratio is not None:
            return max(round(self.keep_ratio * total), 1)
        return super().budget(total)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({VisualEmbeds()})

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        return Selection(farthest(tokens.signals[VisualEmbeds()], k).sort().values)
