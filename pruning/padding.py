"""Which visual tokens show padding: cells of mean colour in bars along the borders, or cells without contrast.

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


def valid_cells(tokens: VisualTokens, padding: str, threshold: float = PADDED) -> Tensor | None:
    """Return Bool[n], False on padding; None when padding is not looked for. An image that is all padding has none.

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
    """Return Bool[n]: tokens in rows (axis 1) or columns (axis 2) that are plain throughout, from a border inwards."""
    placed = tokens.coords[:, axis] >= 0  # a row separator breaks no bar
    line = tokens.coords[:, axis].clamp_min(0)
    frame, width = tokens.frame, int(line.max()) + 1
    full = torch.ones(int(frame.max()) + 1, width, dtype=torch.long, device=line.device)  # a line with no token is none
    full.view(-1).scatter_reduce_(0, frame * width + line, (plain | ~placed).long(), "amin", include_self=True)
    bars = full.cumprod(1) | full.flip(1).cumprod(1).flip(1)
    return (bars[frame, line] == 1) & placed
