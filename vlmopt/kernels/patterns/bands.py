"""Patterns of whole blocks that do not look at the prompt: the first keys, the last ones before the row, or all."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sparse_attention.index import Launch
from .tables import runs
from .view import View


def visible_blocks(view: View, tile: int, run: int) -> Tensor:
    """Return Bool[B, 1, T, N]: blocks of `run` key slots of which some row of the tile sees some key."""
    _, high = view.span(tile)
    start = torch.arange(0, view.width, run, device=high.device)
    return (start <= high[:, None, :, None]) & (start + run > view.first[:, None, None, None])


def band_blocks(view: View, tile: int, run: int, sink: int, local: int) -> Tensor:
    """Return Bool[B, 1, T, N]: visible blocks with one of the first `sink` keys, or of the last `local` of some row."""
    low = view.span(tile)[0][:, None, :, None]
    start = torch.arange(0, view.width, run, device=low.device)
    near = (start + run > low - local + 1) & bool(local)
    head = (start < view.first[:, None, None, None] + sink) & bool(sink)
    return visible_blocks(view, tile, run) & (near | head)


def block_table(view: View, keep: Tensor, tile: int, run: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return `run_ptr`, `run_start` and `run_full` of the blocks Bool[B, H, T, N]."""
    low = view.span(tile)[0][:, None, :, None]
    start = torch.arange(0, view.width, run, device=low.device)
    full = (start + run - 1 <= low) & (start >= view.first[:, None, None, None])
    return runs(keep, start, full, full_first=view.keys is not None or view.prefill.k_start is None)


def block_launch(view: View, keep: Tensor, tile: int, run: int) -> Launch:
    """Return the launch of blocks Bool[B, 1, T, N] that all heads share, with one table per key head."""
    prefill = view.prefill
    tables = prefill.k.shape[1] if prefill.all_heads and view.rows is None else len(prefill.heads)
    return Launch(view.index(tile, run, block_table(view, keep.expand(-1, tables, -1, -1), tile, run)))
