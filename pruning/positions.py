"""Renumbering survivors for position policy "repack" (1-D RoPE)."""

from __future__ import annotations

import torch
from torch import Tensor


def repack_positions(position_ids: Tensor, log: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Consecutive positions for the surviving real tokens of a chunk.

    Numbering starts where the chunk's own real tokens start: 0 in a first chunk, the cached length in a later one.

    Args:
        position_ids: Long[B, L], 1-D positions before pruning, rising by one from real token to real token.
        log: Long[B, W], the columns of `position_ids` that survive. valid: Bool[B, W] or None, False on fillers (left).

    Returns:
        new Long[B, W] (0 on fillers) and shift Long[B] <= 0: what to add to the position of every later token.
    """
    real = torch.ones_like(log, dtype=torch.bool) if valid is None else valid
    count = real.sum(1, keepdim=True)  # [B, 1]
    width = log.shape[1]
    first = log.gather(1, (width - count).clamp_max(width - 1))
    start, _ = run_around(position_ids, first)
    _, end = run_around(position_ids, log[:, -1:])
    new = ((start + real.cumsum(1)) - 1).masked_fill(~real, 0)
    return new, torch.where(count > 0, new[:, -1:] - end, 0)[:, 0]


def run_around(position_ids: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """First and last position, Long[B, 1] each, of the run that rises by one per column around `column` Long[B, 1].

    Tells real tokens that were dropped at an edge of the chunk from padding, whose positions are constants.
    """
    columns = torch.arange(position_ids.shape[1], device=position_ids.device).expand_as(position_ids)
    offset = position_ids - columns
    other = offset != offset.gather(1, column)
    before = columns.masked_fill(~(other & (columns < column)), -1).amax(1, keepdim=True) + 1
    after = columns.masked_fill(~(other & (columns > column)), position_ids.shape[1]).amin(1, keepdim=True) - 1
    return position_ids.gather(1, before), position_ids.gather(1, after)
