"""SCOPE: keep tokens that stand for most of the image, and that the vision tower attends to."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import normalize

from vlmopt.core.settings import setting

from .base import Selector, finite, register
from .coverage import cover
from .signals import Signal, VisionAttention, VisualEmbeds
from .similarity import RESOLUTION, cosines
from .tokens import Selection, VisualTokens


@register("scope")
@dataclass(frozen=True, kw_only=True)
class Scope(Selector):
    """Add, step by step, the token with the highest gain in coverage times its tower attention to the `alpha`.

    SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs (arXiv 2510.24214): what is covered
    of a token is its highest cosine to a chosen one, at least 0, and the gain is the sum over all tokens. Cosines here
    are of what the language model is given; the released code takes features of the tower on LLaVA. Every image has
    a budget of its own. Takes memory for n x n numbers.
    """

    reads = "vision attention"

    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    tower_layer: int = setting(
        -2, "Block of the vision tower whose attention decides; negative counts from the end.", "int"
    )
    alpha: float = setting(1.0, "Exponent of the attention; 0: coverage alone.", "float", min=0, max=4)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({VisionAttention(self.tower_layer), VisualEmbeds()})

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        attention = finite(tokens.signals[VisionAttention(self.tower_layer)].float(), len(tokens), self.label)
        unit = normalize(tokens.signals[VisualEmbeds()].float(), dim=1)
        picked = cover(cosines(unit), k, attention.pow(self.alpha), RESOLUTION)
        return Selection(picked.sort().values, attention)
