"""Worker: which items are encoded together, and the inputs of vLLM's own `embed_multimodal` for some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .plans import Plan


def batches(plans: Sequence[Plan], room: int) -> list[list[int]]:
    """Group consecutive items that are encoded together: as many as were profiled, counted before pruning.

    The scheduler counts placeholders, of which an item has fewer than the tower has work. Items of which the tower's
    signals are read go alone.
    """
    out: list[list[int]] = []
    size = 0
    for i, plan in enumerate(plans):
        alone = bool(plan.listens or plans[i - 1].listens)
        if not out or alone or size + plan.item_total > room:
            out.append([])
            size = 0
        out[-1].append(i)
        size += plan.item_total
    return out


def split(kwargs: dict[str, Any], plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Give the fields of every item, without a dimension of items."""
    items: list[dict[str, Any]] = [{} for _ in plans]
    for name, value in kwargs.items():
        if name in plans[0].flat:
            parts: Any = value.split([plan.flat[name] for plan in plans])
        elif (isinstance(value, list) or value.ndim) and len(value) == len(plans):
            parts = value
        else:
            continue  # shared by all
        for item, of_item in zip(items, parts, strict=True):
            item[name] = of_item
    return items


def joined(items: Sequence[dict[str, Any]], kwargs: dict[str, Any], flat: Any) -> dict[str, Any]:
    """Join some of the items that `split` gave; what is shared is taken from `kwargs`."""
    out = dict(kwargs)
    for name in items[0]:
        parts = [item[name] for item in items]
        if name in flat:
            out[name] = torch.cat(parts)
        elif all(isinstance(p, Tensor) and p.shape == parts[0].shape for p in parts):
            out[name] = torch.stack(parts)
        else:
            out[name] = parts
    return out
