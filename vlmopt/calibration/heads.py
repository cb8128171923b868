"""Measure how much each head looks at images: its attention in text rows, and its output without the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlmopt.attention_fix import (
    Correction,
    HeadCorrection,
    HeadProfile,
    Residual,
    RowCorrection,
    RowView,
    TextOnly,
)
from vlmopt.attention_fix.base import no_rows
from vlmopt.attention_fix.profile import CRITERIA
from vlmopt.attention_fix.sink_scores import sink_mask, sink_scores
from vlmopt.attention_fix.vision_heads import above_median, head_divergence
from vlmopt.attention_fix.visual_sink import gate
from vlmopt.core import Signal

from .sink_dims import half

TABLES = (*CRITERIA, "sharpness", "looking")
NONSINK_RATIO, VISUAL_MASS = 0.5, 0.2  # of `looking`, the gate of `visual_sink`
AGREE, FEW = 0.7, 8  # Jaccard index of the heads that two halves select


@dataclass
class HeadSums:
    """Running sums over prompts, by half, layer and head; prompts count alike, whatever their length.

    `dims` and `tau` say which visual tokens are sinks, and have to be set before the first prompt; without dims none.
    """

    depth: int
    heads: int
    layers: list[int]  # that can be read
    dims: tuple[int, ...] = ()
    tau: float = 0.0
    samples: int = 0
    tables: dict[str, Tensor] = field(default_factory=dict)  # fp64 [2, layers, heads]
    prompt: dict[str, Tensor] = field(default_factory=dict)  # fp64 [layers, heads], summed over rows
    rows: Tensor = field(default_factory=lambda: torch.empty(0))  # fp64 [layers, 1]

    def __post_init__(self) -> None:
        blank = torch.zeros(self.depth, self.heads, dtype=torch.float64)
        self.tables = self.tables or {name: torch.stack([blank, blank]) for name in TABLES}
        self.prompt = {name: blank.clone() for name in TABLES}
        self.rows = torch.zeros(self.depth, 1, dtype=torch.float64)

    @property
    def corrections(self) -> list[Correction]:
        """The methods that listen."""
        return [RowListener(sums=self), HeadListener(sums=self)]

    def attend(self, values: Tensor, view: RowView) -> None:
        """Take in some rows of a layer's attention [1, H, R, K]."""
        chosen = view.rows[0]
        weights, image = values[0][:, chosen], view.image[0]
        sink = view.marks["sink"][0] & image if "sink" in view.marks else torch.zeros_like(image)
        nonsink = weights[..., image & ~sink]
        mass, rest = weights[..., image].sum(-1), nonsink.sum(-1)  # [H, R]
        seen = view.sees(view.image & ~sink)[0].expand(-1, len(chosen), -1)[:, chosen].sum(-1)
        found = {
            "visual_mass": mass,
            "nonsink_mass": rest,
            "sharpness": sharpness(nonsink, rest, seen),
            "looking": gate(mass - rest, rest, NONSINK_RATIO, VISUAL_MASS),
        }
        for name, value in found.items():
            self.prompt[name][view.layer] += value.double().sum(-1).cpu()
        self.rows[view.layer] += weights.shape[1]

    def compare(self, heads: Tensor, text_only: Tensor, layer: int) -> None:
        """Take in head outputs [1, H, D] of the last row with and without images."""
        self.prompt["divergence"][layer] = head_divergence(heads, text_only)[0].double().cpu()

    def finish(self) -> None:
        """End the prompt: count it, in one of two halves, if it had images."""
        if not self.rows.any():
            return
        for name, value in self.prompt.items():
            self.tables[name][half(self.samples)] += value if name == "divergence" else value / self.rows.clamp_min(1)
            value.zero_()
        self.rows.zero_()
        self.samples += 1

    def state(self) -> dict[str, Any]:
        """Return the state, JSON-ready."""
        return {"samples": self.samples, "tables": {name: table.tolist() for name, table in self.tables.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        self.samples = int(state["samples"])
        self.tables = {name: torch.tensor(state["tables"][name], dtype=torch.float64) for name in TABLES}

    def profile(self, facts: Mapping[str, Any]) -> HeadProfile:
        """Return the means, and whether both halves of the prompts select the same heads (else `stats["warnings"]`)."""
        mean = {name: table.sum(0) / self.samples for name, table in self.tables.items()}
        own = {name: mean[name][self.layers] for name in TABLES}
        stats: dict[str, Any] = {
            "layers": self.layers,
            "rank_correlation": rank_correlation(own["nonsink_mass"].flatten(), own["divergence"].flatten()),
            "sharpness": mean["sharpness"].tolist(),
            "looking": [[layer, head] for layer, head in (mean["looking"] > 0.5).nonzero().tolist()],
        }
        doubts = [] if self.samples >= FEW else [f"{self.samples} images are few, take {FEW} or more"]
        if self.samples > 1:
            stats["agreement"] = {name: self.agreement(name) for name in CRITERIA}
            doubts += [
                f"two halves of the images select other heads by {name}: Jaccard index {value:.2f} < {AGREE}"
                for name, value in stats["agreement"].items()
                if value < AGREE
            ]
        tables: dict[str, Any] = {name: mean[name].tolist() for name in CRITERIA}
        return HeadProfile(model=facts, samples=self.samples, **tables, stats=stats | {"warnings": doubts})

    def agreement(self, name: str) -> float:
        """Return the Jaccard index of the heads above the median of their layer, between the halves."""
        first, second = above_median(self.tables[name][:, self.layers])
        either = int((first | second).sum())
        return int((first & second).sum()) / either if either else 1.0


def sharpness(weights: Tensor, mass: Tensor, count: Tensor) -> Tensor:
    """Return 1 - entropy / log n of the attention on n tokens: 0 for all alike, 1 for a single one.

    Args:
        weights: [H, R, n]. mass: [H, R], their sum. count: [H or 1, R], tokens that the row may attend to.
    """
    share = weights / mass.clamp_min(torch.finfo(mass.dtype).tiny)[..., None]
    entropy = -(share * share.clamp_min(torch.finfo(share.dtype).tiny).log()).sum(-1)
    return (1 - entropy / count.clamp_min(2).to(entropy.dtype).log()).clamp(0, 1).where(mass > 0, 0.0)


def rank_correlation(first: Tensor, second: Tensor) -> float | None:
    """Return Spearman's rank correlation of two lists of numbers; None where one of them does not vary."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (first, second)])
    if len(first) < 2 or any(values.max() == values.min() for values in (first, second)):
        return None
    return float(torch.corrcoef(ranks)[0, 1])


@dataclass(frozen=True, kw_only=True)
class RowListener(RowCorrection):
    """Add attention rows to the sums and edit nothing."""

    name = "calibration of rows"

    layers: str = "0:"
    sums: HeadSums = field(hash=False)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Residual()}) if self.sums.dims else frozenset()

    @property
    def is_identity(self) -> bool:
        return False

    def mark(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"sink": sink_mask(sink_scores(hidden, self.sums.dims), self.sums.tau)}

    def edit(self, values: Tensor, view: RowView) -> tuple[Tensor, Tensor]:
        self.sums.attend(values, view)
        return values, no_rows(values)


@dataclass(frozen=True, kw_only=True)
class HeadListener(HeadCorrection):
    """Add head outputs with and without images to the sums and scale nothing."""

    name = "calibration of heads"

    layers: str = "0:"
    sums: HeadSums = field(hash=False)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({TextOnly()})

    @property
    def is_identity(self) -> bool:
        return False

    def gain(self, heads: Tensor, text_only: Tensor | None, layer: int) -> Tensor:
        if text_only is None:
            raise ValueError(f"{self.name}: what heads make of the text alone is missing")
        self.sums.compare(heads, text_only, layer)
        return torch.ones(heads.shape[:2], device=heads.device)
