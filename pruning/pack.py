"""Turn a ragged choice of rows into one rectangular gather."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(content: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the gather index that keeps the True columns of every row, right-aligned and in order.

    Args:
        content: Bool[B, L], columns that stay.

    Returns:
        index Long[B, W], W = the largest count of a row; a shorter row is filled up on the left with columns that do
        not stay (each column at most once), and valid Bool[B, W], False on those fillers, or None without any.
    """
    batch, length = content.shape
    count = content.sum(1, keepdim=True)  # [B, 1]
    width, least = torch.stack([count.max(), count.min()]).tolist()
    if width == least:
        return content.nonzero()[:, 1].view(batch, width), None
    place = torch.where(content, length - count + content.cumsum(1), (~content).cumsum(1)) - 1
    columns = torch.arange(length, device=content.device).expand_as(place)
    order = torch.empty_like(place).scatter_(1, place, columns)
    return order[:, length - width :], torch.arange(width, device=content.device) >= width - count
