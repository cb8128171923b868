"""VisPruner: keep the most attended tokens, and of the others those that repeat each other least."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmopt.core.settings import setting

from .base import ScoreSelector, register
from .released import Renumbered
from .signals import Projector, Signal, VisionAttention, VisualEmbeds
from .similarity import cosines
from .tokens import Selection, VisualTokens

BATCH = 8  # tokens that leave per round


@register("vis_pruner")
@dataclass(frozen=True, kw_only=True)
class VisPruner(Renumbered, ScoreSelector):
    """Keep the share `important` by attention inside the vision tower, the rest by thinning out look-alikes.

    Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs (VisPruner, arXiv
    2412.01818): the remaining tokens, most attended first, are split into even and odd places. The 8 even ones with the
    highest cosine to any odd one leave, the others are joined to the odd ones, and so on until the budget is met. This
    class keeps the order of attention and compares what the LLM is given. The released code orders the even ones that
    stay by falling cosine, which moves the next split, and compares features of the vision tower.
    """

    reads = "vision attention"

    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    tower_layer: int = setting(
        -2, "Block of the vision tower whose attention decides; negative counts from the end.", "int"
    )
    important: float = setting(
        0.5, "Fraction of the budget that goes to the most attended tokens.", "float", min=0, max=1
    )
    paper_compat: bool = setting(
        False,
        "As released: compares features of the vision tower, orders what stays of a round by falling likeness, and "
        "renumbers survivors.",
        "bool",
    )

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({VisionAttention(self.tower_layer), Projector() if self.paper_compat else VisualEmbeds()})

    def score(self, tokens: VisualTokens) -> Tensor:
        attention: Tensor = tokens.signals[VisionAttention(self.tower_layer)]
        return attention.float()

    def take(self, tokens: VisualTokens, k: int, scores: Tensor) -> Selection:
        order = scores.sort(descending=True, stable=True).indices
        attended = math.floor(k * self.important)
        rest = order[attended:]
        if self.paper_compat:
            features = tokens.signals[Projector()].inputs.flatten(1)
        else:
            features = tokens.signals[VisualEmbeds()]
        diverse = rest[thin_out(features[rest], k - attended, falling=self.paper_compat)]
        return Selection(torch.cat([order[:attended], diverse]).sort().values, scores)


def thin_out(features: Tensor, quota: int, falling: bool = False) -> Tensor:
    """Return Long[quota]: the features [m, d] that are left when look-alikes leave, `BATCH` a round; O(m^2) memory.

    falling: even ones that stay enter the next round by falling cosine, not in their old order.
    """
    alike = cosines(normalize(features.float(), dim=1))
    left = torch.arange(len(alike) if quota else 0, device=alike.device)
    while len(left) > quota:
        even, odd = left[::2], left[1::2]
        leave = min(BATCH, len(left) - quota, len(even))
        closest = alike[even][:, odd].amax(1)
        stay = closest.sort(stable=True).indices[: len(even) - leave]
        left = torch.cat([even[stay.flip(0) if falling else stay.sort().values], odd])
    return left
