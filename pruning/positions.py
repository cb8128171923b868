"""Renumber survivors for the position policy "repack" (1-D RoPE)."""

from __future__ import annotations

import torch
from torch import Tensor


def repack_positions(
    position_ids: Tensor, log: Tensor, valid: Tensor | None, real: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return consecutive positions for surviving real tokens of a chunk: each moves down by those dropped before it.

    Args:
        position_ids: Long[B, L], 1-D positions before pruning, rising by one from real token to real token.
        log: Long[B, W], the columns of `position_ids` that survive. valid: Bool[B, W] or None, False on fillers (left).
        real: Bool[B, L], False on padding, which was never dropped; None when every column is a token.

    Returns:
        new Long[B, W] (0 on fillers) and shift Long[B] <= 0: what to add to the position of every later token.
    """
    survives = torch.ones_like(log, dtype=torch.bool) if valid is None else valid
    dropped = ~torch.zeros_like(position_ids, dtype=torch.bool).scatter(1, log, survives)
    if real is not None:
        dropped = dropped & real
    before = dropped.long().cumsum(1)
    new = (position_ids - before).gather(1, log).masked_fill(~survives, 0)
    return new, -before[:, -1]
