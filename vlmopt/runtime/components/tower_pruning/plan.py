"""One run of a vision tower on some of its patches: which rows go on, and what its blocks are handed for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...smaller_images import changed


@dataclass(eq=False)
class Running:
    """State of a call: the plan that acts, while the tower runs on some of its patches."""

    plan: TowerPlan | None = None


@dataclass(eq=False)
class TowerPlan:
    """One call of a feature function whose tower encodes some of the cells."""

    tower: str  # its class, for errors
    running: Running  # where the tower's hooks look for it
    keep: Tensor  # Bool[n] cells that are encoded, of all images of the call
    anchor: Tensor  # Long[n] the encoded cell that each cell stands for
    lengths: list[int]  # cells per image
    group: int  # patches per cell
    found: Tensor | None = None  # see `rows`
    memo: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def run(self, original: Callable[..., Any], bound: dict[str, Any]) -> tuple[Any, list[int]]:
        """Return the function's output at full length."""
        self.running.plan = self
        try:
            out = original(**bound)
        finally:
            self.running.plan = None
        self.rows()  # refuses a tower whose blocks did not run
        return changed(out, self.lengths, self.fill), self.lengths

    def fill(self, items: list[Tensor]) -> list[Tensor]:
        """Return features of all images, with those of the anchors at the cells that were left out."""
        features = torch.cat(items)
        return list(features[self.anchor.to(features.device)].split(self.lengths))

    @property
    def patches(self) -> Tensor:
        """Long[p]: encoded patches, in the order of the pixels."""
        return self.keep.repeat_interleave(self.group).nonzero()[:, 0]

    def find(self, hidden: Tensor) -> Tensor:
        """Return the rows [p, d] of [P, d] to go on with, wherever the tower put them."""
        self.found = (~hidden[:, 0].isnan()).nonzero()[:, 0]
        if len(self.found) != len(self.patches):
            raise ValueError("the vision tower embeds some pixels as NaN; check the pixels and the model's dtype")
        return hidden[self.found]

    def rows(self) -> Tensor:
        """Return Long[p]: places of the encoded patches in the tower's order, from its first block on.

        Raises:
            ValueError: no block has run.
        """
        if self.found is None:
            raise ValueError(f"the blocks of {self.tower} did not run, so it cannot go on with some of its patches")
        return self.found

    def fitted(self, name: str, value: Any) -> Any:
        """Return an argument of a block for the rows that are left; the same object is fitted once."""
        if not name.startswith(("position_embeddings", "rotary_pos_emb", "cu_seqlens")) or value is None:
            return value  # a largest length may be too large
        if id(value) not in self.memo:
            fit = self.bounds if name.startswith("cu_seqlens") else self.gathered
            self.memo[id(value)] = (value, fit(value))  # holding the value keeps its id from being reused
        return self.memo[id(value)][1]

    def gathered(self, table: Any) -> Any:
        if isinstance(table, (tuple, list)):
            return tuple(self.gathered(t) for t in table)
        return table[self.rows().to(table.device)]

    def bounds(self, bounds: Tensor) -> Tensor:
        """Return where segments begin and end [s + 1] among the rows that are left; empty segments vanish."""
        here = torch.zeros(self.group * len(self.keep), dtype=bounds.dtype, device=bounds.device)
        counts = pad(here.index_fill_(0, self.rows().to(bounds.device), 1).cumsum(0), (1, 0))
        left: Tensor = counts[bounds.long()].to(bounds.dtype).unique_consecutive()
        return left

    def spread(self, merged: Tensor) -> Tensor:
        """Return merged rows at the places of their cells in the tower's order, zeros elsewhere."""
        cells = self.rows()[:: self.group].to(merged.device) // self.group
        return merged.new_zeros(len(self.keep), merged.shape[-1]).index_copy_(0, cells, merged)
