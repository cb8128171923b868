"""Which visual tokens show padding: from geometry, from mean-colour bars, or from blank bars in the picture itself.

Attention Debiasing for Token Pruning in Vision Language Models (arXiv 2508.17807): padding attracts attention like a
sink, so its tokens must not be candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .signals import Pixels
from .tokens import VisualTokens

PADDING = ("keep", "square", "blank")
PADDED = 0.5  # fraction of a cell beyond which it is padding
MEAN_COLOUR = 0.02  # normalised pixel values; the mean colour is 0, rounding to whole grey levels moves it by 0.015
BLANK = 1 / 64  # standard deviation inside a blank cell: one grey level of 255 over the usual image_std of 0.26


def square_padding(width: int, height: int, grid: int, threshold: float = PADDED) -> Tensor:
    """Bool[grid, grid]: cells of a picture of width x height, padded to a square, whose padded fraction > threshold.

    Raises:
        ValueError: a size below 1, or a threshold outside 0..1.
    """
    if min(width, height, grid) < 1 or not 0 <= threshold <= 1:
        raise ValueError(
            f"width, height and grid must be >= 1 and threshold in 0..1, got {width}, {height}, {grid}, {threshold}"
        )
    side = max(width, height)
    covered = [coverage((side - size) // 2, size, side, grid) for size in (height, width)]
    return 1 - covered[0][:, None] * covered[1] > threshold


def coverage(offset: int, size: int, side: int, grid: int) -> Tensor:
    """fp64 [grid]: fraction of each of `grid` equal parts of 0..side that lies inside offset..offset + size."""
    edges = torch.arange(grid + 1) * side  # in pixels / grid: whole numbers, so that a full cell is exactly full
    inside = edges[1:].clamp_max((offset + size) * grid) - edges[:-1].clamp_min(offset * grid)
    return inside.clamp_min(0).double() / side


def valid_cells(tokens: VisualTokens, padding: str, threshold: float = PADDED) -> Tensor | None:
    """Bool[n], False on padding; None when padding is not looked for. A picture that is all padding counts as none.

    Args:
        padding: "keep"; "square": cells of mean colour in bars along the borders; "blank": cells without contrast, too.
        threshold: a cell is of mean colour where a larger fraction of its pixels is.
    """
    if padding == "keep":
        return None
    pixels = tokens.signals[Pixels()]
    plain = (pixels.abs().amax(1) < MEAN_COLOUR).float().mean(1) > threshold
    if padding == "blank":
        plain = plain | (pixels.std(2).amax(1) < BLANK)
    bars = torch.zeros_like(plain)
    for axis in (1, 2):
        bars |= border_bars(tokens, plain, axis)
    whole = (bars | tokens.structural).long()
    every = torch.ones_like(tokens.item).scatter_reduce(0, tokens.item, whole, "amin", include_self=True)
    return ~bars | (every[tokens.item] == 1)


def border_bars(tokens: VisualTokens, plain: Tensor, axis: int) -> Tensor:
    """Bool[n]: tokens in rows (axis 1) or columns (axis 2) that are plain all along, connected to a border by such."""
    placed = tokens.coords[:, axis] >= 0  # a row separator breaks no bar
    line = tokens.coords[:, axis].clamp_min(0)
    frame, width = tokens.frame, int(line.max()) + 1
    full = torch.ones(int(frame.max()) + 1, width, dtype=torch.long, device=line.device)  # a line with no token is none
    full.view(-1).scatter_reduce_(0, frame * width + line, (plain | ~placed).long(), "amin", include_self=True)
    bars = full.cumprod(1) | full.flip(1).cumprod(1).flip(1)
    return (bars[frame, line] == 1) & placed
