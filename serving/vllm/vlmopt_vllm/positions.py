"""M-RoPE positions of prompts whose images were pruned; pure tensor functions.

Text goes on behind an image where it would without pruning, so its positions never depend on which cells stayed: a
prefix that was cached with one image's rows fits every later question. A kept row has the position of its cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BASE = 256  # coordinates travel behind the embeddings as two digits; bf16 and fp16 hold each exactly
COLUMNS = 6
LARGEST = BASE * BASE - 1


@dataclass(frozen=True)
class Span:
    """Placeholders of one image, video or frame."""

    start: int
    length: int
    extent: int  # by how much positions go on behind it
    cells: Tensor | None = None  # Long[length, 3], relative to its first position; None where the encoder decides


def cells_of(grid: Sequence[int], step: float = 1.0) -> Tensor:
    """Give Long[t*h*w, 3], (t, y, x) of every cell in raster order; frames are `step` positions apart, rounded down."""
    t, h, w = grid
    times = (torch.arange(t, dtype=torch.float64) * step).floor().long()
    return torch.cartesian_prod(times, torch.arange(h), torch.arange(w)).view(-1, 3)


def extent_of(grid: Sequence[int], step: float = 1.0) -> int:
    """Give one more than the largest coordinate of `cells_of`."""
    t, h, w = grid
    return max(math.floor((t - 1) * step) + 1, h, w)


def lay_out(length: int, spans: Sequence[Span]) -> tuple[Tensor, int]:
    """Give Long[3, length], positions of a prompt, and what to add to the index of a later token for its position.

    Rows whose cells are not known yet have the position at which their span begins.
    """
    advance = torch.ones(length, dtype=torch.long)  # from one token to the next
    for span in spans:
        advance[span.start : span.start + span.length] = 0
    before = torch.zeros(length + 1, dtype=torch.long)  # what spans add, from the token behind them on
    for span in spans:
        before[span.start + span.length] += span.extent
    text = advance.cumsum(0) - advance + before.cumsum(0)[:length]
    positions = text.repeat(3, 1)
    for span in spans:
        if span.cells is not None:
            positions[:, span.start : span.start + span.length] += span.cells.T
    return positions, int(advance.sum()) + sum(span.extent for span in spans) - length


def placed(positions: Tensor, visual: Tensor, cells: Tensor, computed: int) -> Tensor:
    """Put the positions of `cells` Long[k, 3] at the first k visual tokens from index `computed` on: a copy, [3, n].

    visual: Bool[n]. A span begins one behind the position of the text token before it, whose position never changes;
    so the answer is the same however often, and in however many chunks, this is asked.
    """
    places = visual.nonzero()[:, 0]
    places = places[torch.searchsorted(places, computed) :][: len(cells)]
    index = torch.arange(len(visual), device=visual.device)
    text = torch.where(visual, -1, index).cummax(0).values[places]
    out = positions.clone()
    out[:, places] = positions[:, text] + 1 + cells.T.to(positions)
    return out


def packed(cells: Tensor) -> Tensor:
    """Write Long[k, 3], each in 0..65535, as digits Long[k, 6]."""
    return torch.cat([cells // BASE, cells % BASE], 1)


def unpacked(digits: Tensor) -> Tensor:
    """Read what `packed` wrote, from floats."""
    digits = digits.round().long()
    return digits[:, :3] * BASE + digits[:, 3:]
