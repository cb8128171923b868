"""HoloV: let the budget follow attention from crop to crop, so that no single object takes it all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmopt.core.settings import setting

from .base import Selector, finite, register, top
from .budget import apportion
from .signals import Signal, VisionAttention, VisualEmbeds
from .tokens import Selection, VisualTokens
from .uniform import cuts

VARIANCE = 0.09  # weight of the variance beside attention


@register("holov")
@dataclass(frozen=True, kw_only=True)
class HoloV(Selector):
    """Share the budget among crops (contiguous in raster order) by their mean score; inside a crop keep the best.

    Don't Just Chase "Highlighted Tokens" in MLLMs: Revisiting Visual Holistic Context Retention (HoloV, arXiv
    2510.02912): score_i = a_i + 0.09 v_i, a the attention inside the vision tower, v_i the variance of the cosines of
    token i to the others of its crop, scaled to the mean of a. Means over crops therefore follow attention alone. In
    the released code so does the ranking inside a crop; here the score ranks, so that the variance decides something.
    The released code fills places that a crop is too small for with zero vectors; here other crops always take them.
    """

    reads = "vision attention"

    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    tower_layer: int = setting(
        -2, "Block of the vision tower whose attention decides; negative counts from the end.", "int"
    )
    crops: int | None = setting(
        None,
        "Crops per image; if not given 1.778 * tokens / budget (the paper on Qwen2.5-VL; on LLaVA 16).",
        "int",
        min=1,
    )
    paper_compat: bool = setting(
        False,
        "As released: attention alone ranks inside a crop, longer crops come first, and what rounding down the shares "
        "leaves goes to the heaviest crops.",
        "bool",
    )

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({VisionAttention(self.tower_layer), VisualEmbeds()})

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        n = len(tokens)
        attention = finite(tokens.signals[VisionAttention(self.tower_layer)].float(), n, self.label)
        sizes = cuts(n, min(self.crops or max(math.floor(1.778 * n / k), 1), n))
        if self.paper_compat:
            sizes.sort(reverse=True)
        crops = zip(attention.split(sizes), tokens.signals[VisualEmbeds()].split(sizes), strict=True)
        scores = [holistic(a, embeds) for a, embeds in crops]
        means = torch.stack([s.mean() for s in scores]).tolist()
        shares = heaviest_first(means, k, sizes) if self.paper_compat else apportion(means, k, sizes, 0)
        ranks = attention.split(sizes) if self.paper_compat else scores
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        keep = [top(rank, share) + start for rank, share, start in zip(ranks, shares, starts, strict=True)]
        return Selection(torch.cat(keep), torch.cat(scores))


def heaviest_first(weights: Sequence[float], budget: int, caps: Sequence[int]) -> list[int]:
    """Return parts in proportion to `weights` >= 0, rounded down; the heaviest get what is left of `budget`, one each.

    Part i is at most caps[i], and the budget at most the sum of the caps.
    """
    total = sum(weights)
    parts = [min(math.floor(budget * w / total), cap) if total else 0 for w, cap in zip(weights, caps, strict=True)]
    order = sorted(range(len(caps)), key=lambda i: -weights[i])
    while left := budget - sum(parts):
        for i in [i for i in order if parts[i] < caps[i]][:left]:
            parts[i] += 1
    return parts


def holistic(attention: Tensor, embeds: Tensor) -> Tensor:
    """Return fp32 [m]: attention [m] of a crop plus 0.09 times the (scaled) variance of cosines of embeds [m, d]."""
    unit = normalize(embeds.float(), dim=1)
    cosines, others = unit @ unit.T, max(len(unit) - 1, 1)
    off = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    mean = (cosines * off).sum(1, keepdim=True) / others
    variance = ((cosines - mean).square() * off).sum(1) / others
    scale = torch.where(variance.mean() > 0, attention.mean() / variance.mean().clamp_min(1e-12), 0.0)
    return attention + VARIANCE * scale * variance
