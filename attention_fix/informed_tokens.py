"""PAINT: boost the patches that show objects, and less strongly those that sum up the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from vlmopt.core import Signal, setting

from .base import RowView, Tower, no_rows, register
from .boost import Boost, boosted

CLIFF = 0.6  # between 0.5 and 0.7 the published captions begin to repeat themselves


@register("informed_tokens")
@dataclass(frozen=True, kw_only=True)
class InformedTokens(Boost):
    """Add alpha |z| to logits of local tokens and beta |z| to those of summary tokens, in rows that predict (PAINT).

    Fixing Imbalanced Attention to Mitigate In-Context Hallucination of Large Vision-Language Model (arXiv 2501.12206),
    later "Paying Attention to INformed Tokens". Local tokens are those that the vision tower attends to in its first
    block; summary tokens are the outliers of what it attends to in its second to last block. At the default alpha the
    paper's own sweep shows no gain in CHAIR. At its 0.7 there is one, in captions half of which repeat a sentence. The
    modulation of heads that the first abstract announces was never released; `head_gain` is ours.
    """

    reads = "attention, vision attention"

    layers: str = setting("2:", "Decoder layers, as indices and slices; the paper's are all but the first two.", "str")
    alpha: float = setting(
        0.5,
        "Boost of local tokens, as a fraction of |z|; above 0.6 texts tend to repeat themselves.",
        "float",
        min=0,
        max=2,
    )
    beta: float = setting(0.3, "Boost of summary tokens, as a fraction of |z|.", "float", min=0, max=2)
    local_ratio: float = setting(
        0.25,
        "Fraction of an image's tokens that count as local; those that are summary tokens as well are summary.",
        "float",
        min=0,
        max=1,
    )
    local_block: int = setting(
        0,
        "Block of the vision tower that shows objects; negative counts from the end. In a tower with windows the "
        "default stands for the first block that sees the whole image.",
        "int",
    )
    summary_block: int = setting(
        -2, "Block that sums up; with windows the default stands for the last that sees the whole image.", "int"
    )

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Tower(self.local_block), Tower(self.summary_block)}) if self.boosts else frozenset()

    @property
    def boosts(self) -> bool:
        return self.alpha != 0 or self.beta != 0

    def for_model(self, model: Mapping[str, Any]) -> InformedTokens:
        """Return the same; in a tower with windows the default blocks become the first and last that see it whole."""
        self.check_model(model)
        whole = model.get("whole_blocks")
        if not whole:
            return self
        defaults = {f.name: f.default for f in fields(self)}
        ends = {"local_block": min(whole), "summary_block": max(whole)}
        return replace(self, **{name: end for name, end in ends.items() if getattr(self, name) == defaults[name]})

    @property
    def caution(self) -> str | None:
        if self.alpha <= CLIFF:
            return None
        return (
            f"informed_tokens: alpha={self.alpha} is above {CLIFF}, where published captions repeat themselves; watch "
            "distinct-n and length next to any score, or set watchdog='mark'"
        )

    def choose(self, tower: Mapping[int, Tensor]) -> dict[str, Tensor]:
        summary = outliers(tower[self.summary_block].float())
        local = largest(tower[self.local_block].float(), self.local_ratio)
        return {"local": local & ~summary, "summary": summary}

    def edit(self, values: Tensor, view: RowView) -> tuple[Tensor, Tensor]:
        if not self.boosts:  # guidance alone: nothing was chosen
            return values, no_rows(values)
        alpha, beta = (self.per_head(strength, values, view.layer) for strength in (self.alpha, self.beta))
        values, local = boosted(values, alpha, view, view.marks["local"])
        values, summary = boosted(values, beta, view, view.marks["summary"])
        return values, local | summary


def largest(scores: Tensor, ratio: float) -> Tensor:
    """Return Bool[n]: the floor(n * ratio) largest of fp32 [n]; of equal ones the first."""
    count = int(len(scores) * ratio + 1e-9)  # 100 * 0.29 is 28.999...
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[scores.argsort(descending=True, stable=True)[:count]] = True
    return chosen


def outliers(scores: Tensor) -> Tensor:
    """Return Bool[n]: scores fp32 [n] beyond Q3 + 1.5 (Q3 - Q1), quartiles by linear interpolation."""
    first, third = scores.quantile(0.25), scores.quantile(0.75)
    return scores > third + 1.5 * (third - first)
