"""What a selector sees (`VisualTokens`) and what it answers (`Selection`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .signals import Signal


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """The visual tokens of one sample at one decoder-layer boundary, in sequence order; n of them are left."""

    total: int  # N: visual tokens of the prompt before any pruning
    ordinal: Tensor  # Long[n] index of each current token among the N
    item: Tensor  # Long[n] running number of the span (image, tile, frame, video) inside the sample
    coords: Tensor  # Long[n, 3] (t, y, x) in its span's merged grid; -1 where unknown or structural (newline tokens)
    grids: tuple[tuple[int, int, int] | None, ...]  # per span (t, h, w) after merging; None if unknown
    signals: Mapping[Signal, Any]
    seed: int  # the policy's seed
    lengths: tuple[int, ...] = ()  # tokens of each span before any pruning; () means one span of N
    held: Tensor | None = (
        None  # Bool[n]: tokens that have to stay, since a prediction is read off their row; None: none
    )

    def __len__(self) -> int:
        return len(self.ordinal)

    @property
    def structural(self) -> Tensor:
        """Bool[n]: tokens that are not patches although their span has a grid (row separators)."""
        placeless = (self.coords < 0).all(1)
        if None not in self.grids:
            return placeless
        known = torch.tensor([grid is not None for grid in self.grids], device=self.item.device)
        return placeless & known[self.item]

    @property
    def place(self) -> Tensor:
        """Long[n]: the index of each token inside its own span."""
        lengths = torch.tensor(self.lengths or (self.total,), device=self.item.device)
        starts = lengths.cumsum(0) - lengths
        return self.ordinal - starts[self.item if self.lengths else torch.zeros_like(self.item)]

    @property
    def frame(self) -> Tensor:
        """Long[n]: the running number of (span, frame); an image is one frame."""
        t = self.coords[:, 0].clamp_min(0)
        frame: Tensor = torch.unique(torch.stack([self.item, t], 1), dim=0, return_inverse=True)[1]
        return frame

    def subset(self, index: Tensor) -> VisualTokens:
        """Return only the tokens `index` Long[m], with their signals."""
        return replace(
            self,
            ordinal=self.ordinal[index],
            item=self.item[index],
            coords=self.coords[index],
            held=None if self.held is None else self.held[index],
            signals={signal: signal.subset(value, index) for signal, value in self.signals.items()},
        )


@dataclass(frozen=True, eq=False)
class Written:
    """Slots whose content the selector replaces: by merged tokens, or by a CLS token.

    A written slot keeps its position, and is no longer a patch (nothing is added to it by DeepStack).
    """

    slots: Tensor  # Long[e] indices into the current tokens, all of them in `keep`, none of them held
    embeds: Tensor  # [e, d] in the space of the hidden states at the cut
    origin: Tensor  # Long[n] the slot into which each current token was merged; -1 where none
    kind: str = "merged"  # "merged" | "cls"


@dataclass(frozen=True, eq=False)
class Selection:
    """Which of the current tokens stay."""

    keep: Tensor  # Long[k], sorted, unique, indices into 0..n-1 of the current tokens, all held ones among them
    scores: Tensor | None = None  # fp32 [n], higher = keep; NaN where a token was not a candidate
    stats: Mapping[str, Any] = field(default_factory=dict)
    written: Written | None = None
