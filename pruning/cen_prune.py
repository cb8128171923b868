"""Cen-Prune: choose by diversity of centred features, weighted by how distinctive a token was before centring."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from vlmopt.core.settings import setting

from .base import Selector, finite, register
from .greedy import farthest
from .signals import Projector, Signal, VisualEmbeds
from .similarity import largest_volume, min_max
from .tokens import Selection, VisualTokens


@register("cen_prune")
@dataclass(frozen=True, kw_only=True)
class CenPrune(Selector):
    """Keep tokens by DivPrune or a determinantal point process, in a corrected geometry.

    Centering before Pruning: Lightweight Geometry Correction for Diversity-Based Visual Token Pruning in LVLMs (Wen et
    al., 2026). Cosines of visual tokens crowd well above 0. Without their mean they spread, but the preference for
    distinctive tokens is lost; it returns as a weight g, see `centred`. max_min: DivPrune's first token, then the
    argmax of g_i * min_s (1 - S_is), S the centred cosines; dpp: the largest determinant of diag(g) S diag(g).
    """

    reads = "embeddings"

    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    base: str = setting(
        "max_min", "max_min: as DivPrune; dpp: as CDPruner without a question.", "str", choices=("max_min", "dpp")
    )
    features: str = setting(
        "embeds",
        "embeds: projector output (the paper on LLaVA); projector_input: all patches of a token (on Qwen2.5-VL).",
        "str",
        choices=("embeds", "projector_input"),
    )

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({VisualEmbeds() if self.features == "embeds" else Projector()})

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        if self.features == "embeds":
            raw = tokens.signals[VisualEmbeds()]
        else:
            raw = tokens.signals[Projector()].inputs.flatten(1)
        moved, weights = centred(raw)
        finite(weights, len(tokens), self.label)
        if self.base == "dpp":
            picked = largest_volume(moved, k, weights)
        else:
            picked = farthest(moved, k, weights, first=farthest(raw, 1)[0])
        return Selection(picked.sort().values, weights)


def centred(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return features [n, d] without their mean, fp32, and the distinctiveness g of each token, fp32 [n] in 0..1.

    g_i = minus the mean cosine of token i to the others before centring, stretched to 0..1; 1 for all if it is equal.
    """
    unit = normalize(features.float(), dim=1)
    others = unit @ unit.sum(0) - unit.square().sum(1)
    return features.float() - features.float().mean(0), min_max(-others / max(len(unit) - 1, 1))
