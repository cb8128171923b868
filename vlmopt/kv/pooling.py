"""Smooth scores over neighbouring keys: along the sequence, or on the grid of patches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

AROUND = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]  # 3 x 3 cells


def pool_sequence(scores: Tensor, kernel: int) -> Tensor:
    """Average `kernel` (odd) neighbours along the last axis; what lies beyond an end counts as 0."""
    flat = avg_pool1d(scores.flatten(0, -2)[:, None], kernel, 1, kernel // 2, count_include_pad=True)
    return flat[:, 0].view_as(scores)


def pool_grid(scores: Tensor, elsewhere: Tensor, around_keys: Tensor) -> Tensor:
    """Average those of the 3 x 3 cells around each visual key that hold one; `elsewhere` for other keys.

    Args:
        scores, elsewhere: fp32 [B, Hk, n]. around_keys: Long[B, 1|Hk, n, 9], as `neighbours` finds them.
    """
    found = around_keys >= 0
    slots = around_keys.clamp_min(0).expand(-1, scores.shape[1], -1, -1)
    around = scores.gather(2, slots.flatten(2)).view(slots.shape)
    count = found.sum(-1)
    return torch.where(count > 0, (around * found).sum(-1) / count.clamp_min(1), elsewhere)


def neighbours(item: Tensor, t: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return the slots of the 3 x 3 cells around every key in its own image and frame.

    Args:
        item, t, y, x: Long[B, H, n], number of the image inside the sample, frame, row and column; -1 where a key is
            no patch.

    Returns:
        Long[B, H, n, 9], -1 where a cell holds no key.
    """
    patch = (item >= 0) & (t >= 0) & (y >= 0) & (x >= 0)
    frames, height, width = (int(axis.max()) + 1 for axis in (t, y, x))
    rows, columns = height + 2, width + 2  # a rim of empty cells
    size = (int(item.max()) + 1) * frames * rows * columns
    cell = ((item * frames + t) * rows + y + 1) * columns + x + 1
    cell = torch.where(patch, cell, size)  # a cell that nobody neighbours
    table = cell.new_full((*cell.shape[:2], size + 1), -1)
    table.scatter_(2, cell, torch.arange(cell.shape[2], device=cell.device).expand_as(cell))
    step = torch.tensor([dy * columns + dx for dy, dx in AROUND], device=cell.device)
    around = torch.where(patch[..., None], cell[..., None] + step, size)
    found = table.gather(2, around.flatten(2)).view(around.shape)
    return found.masked_fill(~patch[..., None], -1)
