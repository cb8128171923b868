"""Grid heads: keep key columns, query rows and diagonals that repeat with the frames of a video."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlmopt.core import setting

from ..sparse_attention.index import Launch
from .base import register
from .grid_lines import full_rows, lines, near
from .grid_search import Grids, search
from .probe import probe_lines
from .vertical_slash import VerticalSlash
from .view import View, ViewPattern


@register("grid")
@dataclass(frozen=True, kw_only=True)
class GridSparse(ViewPattern):
    """Keep lines that repeat with a stride found in the last `probe` rows, the first keys and a local window.

    MMInference (arXiv 2504.16083), Grid head. Columns: keys phase + n * stride. Rows: rows at phase + n * stride keep
    every key; they cannot be seen in the last rows, so they come with the phase of the columns, which a grid has on
    both axes. Diagonals: distances delta + n * stride. The sink and the window are an addition: without them a row
    between the lines loses its own neighbourhood. Heads without such a period in this prompt fall back to
    `VerticalSlash`.
    """

    reads = "last rows"

    stride: str = setting(
        "search",
        "search: any period of the scores, or the tokens per frame; frame: these only, where they are known.",
        "str",
        choices=("search", "frame"),
    )
    columns: bool = setting(True, "Keep key columns that repeat (V-lines).", "bool")
    rows: bool = setting(False, "Keep every key for query rows that repeat (H-lines).", "bool")
    diagonals: bool = setting(True, "Keep diagonals that repeat (S-lines).", "bool")
    max_stride: int = setting(1024, "Longest period that is searched for, in tokens.", "int", min=16)
    strength: float = setting(4.0, "Least mass on the best line of a grid; 1 is an even spread.", "float", min=1)
    sink: int = setting(64, "First keys that every row keeps.", "int", min=0)
    local: int | None = setting(
        None, "Last keys that a row keeps, itself included; if not given: one frame, but at least 128.", "int", min=1
    )
    probe: int = setting(64, "Last rows that are read.", "int", min=1)
    vertical: int = setting(1000, "Single keys of a head without a grid.", "int", min=30)
    slash: int | None = setting(
        None, "Distances of a head without a grid; if not given: as many as `vertical_slash` takes.", "int", min=100
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.columns or self.rows or self.diagonals):
            raise ValueError("grid: columns, rows and diagonals are all off; switch one on, or use the pattern a_shape")

    def select(self, view: View) -> list[Launch]:
        verticals, slashes = probe_lines(view, self.probe)
        grids = self.find(view, verticals, slashes)
        on = grids.columns | grids.diagonals
        launches = []
        heads = (~on).any(0).nonzero()[:, 0]
        if len(heads):
            other = VerticalSlash(
                tile=self.tile, run=self.run, vertical=self.vertical, slash=self.slash, probe=self.probe
            )
            part = view.on(view.prefill.heads[heads])
            launches.append(blank(other.launch(part, verticals[:, heads], slashes[:, heads]), part, on[:, heads]))
        heads = on.any(0).nonzero()[:, 0]
        if len(heads):
            part = view.on(view.prefill.heads[heads])
            launches += [blank(launch, part, ~on[:, heads]) for launch in self.launches(part, grids.on(heads))]
        return launches

    def find(self, view: View, verticals: Tensor, slashes: Tensor) -> Grids:
        """Return the grids of every sample and head, from masses fp32 [B, H, N] per key slot and per distance."""
        frame = view.prefill.frame
        return search(
            view,
            verticals,
            slashes,
            rows=min(self.probe, view.slots),
            known=(frame,) if frame else (),
            propose=self.stride == "search",
            largest=self.max_stride,
            least=self.strength,
            columns=self.columns or self.rows,
            diagonals=self.diagonals,
        )

    def launches(self, view: View, grids: Grids) -> list[Launch]:
        """Return window, lines and whole rows.

        Diagonals need rows class by class, whose windows would join to one long stretch; so where there are any, the
        window is a launch of its own, and the lines end where it begins.
        """
        local = self.local or max(128, view.prefill.frame or 0)
        whole = grids.columns if self.rows else None
        columns = grids.columns if self.columns else torch.zeros_like(grids.columns)
        grids = replace(grids, whole=whole, columns=columns)
        size = {"tile": self.tile, "run": self.run}
        apart = self.diagonals and bool(grids.diagonals.any())
        out = [near(view, grids, columns=not apart, sink=self.sink, local=local, **size)]
        if apart:
            out.append(lines(view, grids, sink=self.sink, local=local, **size))
        if whole is not None:
            out.append(full_rows(view, grids, whole, **size))
        return out


def blank(launch: Launch, view: View, dead: Tensor) -> Launch:
    """Return the launch without the rows of dead samples and heads Bool[B, H], for the other half of a mixed batch."""
    if len(dead) == 1 or not bool(dead.any()):
        return launch
    order = launch.index.q_order
    if order is None:
        order = torch.arange(view.slots, dtype=torch.int, device=dead.device)[None, None]
    return replace(launch, index=replace(launch.index, q_order=torch.where(dead[:, :, None], -1, order)))
