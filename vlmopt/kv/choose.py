"""From scores to the keys that stay."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmopt.pruning import pack


def choose(scores: Tensor, protected: Tensor, real: Tensor, count: Tensor) -> tuple[Tensor, Tensor | None]:
    """Choose the slots that stay, ascending: what is protected, then the best of the others, ties to the lowest slot.

    Args:
        scores: [B, H, n], higher = keep.
        protected, real: Bool[B, 1|H, n]; what is not real never stays.
        count: Long[B], slots that stay in every head of a sample, those that are protected among them.

    Returns:
        index Long[B, H, k] with k = max(count); a sample with fewer is filled up on the left with slots that do not
        stay, and valid Bool[B, k], False on those, or None without any.
    """
    infinity = torch.tensor(float("inf"), device=scores.device, dtype=torch.float32)
    values = torch.where(protected, infinity, scores.float().nan_to_num())
    values = torch.where(real, values, -infinity)
    order = values.sort(dim=-1, descending=True, stable=True).indices
    rank = torch.arange(scores.shape[-1], device=scores.device)
    stays = torch.zeros_like(values, dtype=torch.bool).scatter_(
        -1, order, (rank < count[:, None, None]).expand_as(order)
    )
    index, valid = pack(stays.flatten(0, 1))
    index = index.view(*scores.shape[:2], -1)
    return index, None if valid is None else valid.view(*scores.shape[:2], -1)[:, 0]
