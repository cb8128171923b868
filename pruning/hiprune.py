"""HiPrune: keep objects by a middle block of the vision tower, their surroundings, and the whole by a deep one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmopt.core.settings import setting

from .base import Selector, finite, register
from .signals import Signal, VisionAttention
from .tokens import Selection, VisualTokens


@register("hiprune")
@dataclass(frozen=True, kw_only=True)
class HiPrune(Selector):
    """Keep anchors by attention of a middle block, the four cells around each, and the rest by that of a deep block.

    HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models (arXiv
    2508.00553). Attention is the mean over all rows, also where the tower has a CLS token. Anchors are
    round(alpha * budget / 5). Neighbours are those of the grid: the released code takes the next cell of the sequence,
    which for the last one of a row lies in the next row. Where the budget ends among the neighbours, those of the
    weakest anchors are missing; there the released code raises an error. On Qwen2.5-VL object_layer=15 and
    tower_layer=31 are blocks that see the whole image.
    """

    reads = "vision attention"

    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    object_layer: int = setting(8, "Block of the vision tower that finds anchors; negative counts from the end.", "int")
    tower_layer: int = setting(
        -2, "Block of the vision tower that ranks the others; negative counts from the end.", "int"
    )
    alpha: float = setting(0.1, "Share of the budget for anchors and their neighbours.", "float", min=0, max=1)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset(
            {VisionAttention(self.object_layer, rows="all"), VisionAttention(self.tower_layer, rows="all")}
        )

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        middle, deep = (
            finite(tokens.signals[VisionAttention(layer, rows="all")].float(), len(tokens), self.label)
            for layer in (self.object_layer, self.tower_layer)
        )
        count = max(math.floor(k * self.alpha / 5 + 0.5), int(self.alpha > 0 and k >= 5))
        anchors = middle.sort(descending=True, stable=True).indices[:count]
        order = deep.sort(descending=True, stable=True).indices
        level = levels(tokens, anchors)[order].sort(descending=True, stable=True).indices
        return Selection(order[level][:k].sort().values, deep, {"anchors": count})


def levels(tokens: VisualTokens, anchors: Tensor) -> Tensor:
    """Return Long[n]: A + 1 for the A anchors, A down to 1 for neighbours of the first to the last, 0 for others."""
    cells, a = tokens.coords, len(anchors)
    apart = (cells[anchors][:, None] - cells).abs()  # [A, n, 3]
    beside = (apart.sum(2) == 1) & (apart[:, :, 0] == 0) & (cells >= 0).all(1)
    beside &= tokens.item[anchors][:, None] == tokens.item
    rank = torch.arange(a, 0, -1, device=cells.device)[:, None]
    found = torch.cat([beside * rank, torch.zeros_like(tokens.item)[None]]).amax(0)
    return found.index_fill(0, anchors, a + 1)
