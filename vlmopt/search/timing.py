"""What a plan costs: pairs of a row and a key that it computes, per head, and seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..kernels.patterns import Prefill
from ..kernels.sparse_attention import Launch

Result = TypeVar("Result")


def cells(prefill: Prefill, launches: Sequence[Launch]) -> Tensor:
    """Return fp64 [Hq]: cells of runs and columns (in full tiles) and on arithmetic lines; 0 for uncovered heads."""
    total = torch.zeros(prefill.q.shape[1], dtype=torch.float64, device=prefill.device)
    for launch in launches:
        index = launch.index
        count = index.run * (index.run_ptr[..., -1] - index.run_ptr[..., 0]).double()
        if index.col_ptr is not None:
            count += index.col_ptr[..., -1] - index.col_ptr[..., 0]
        own = (index.tile * count + line_cells(prefill, launch)).sum(0)  # [tables]
        heads = torch.arange(len(total), device=total.device) if index.heads is None else index.heads
        total.index_add_(0, heads, own.repeat_interleave(len(heads) // len(own)))
    return total


def line_cells(prefill: Prefill, launch: Launch) -> Tensor:
    """Return fp64 [B, tables]: the visible keys of every row, divided by the strides of its columns and diagonals."""
    index = launch.index
    density = torch.zeros(index.batch, index.covered, dtype=torch.float64, device=prefill.device)
    if index.grid is not None:
        density += index.grid[..., 2] / index.grid[..., 0].clamp_min(1)
    if index.slash is not None:
        density += (index.slash[..., 0] > 0) / index.slash[..., 0].clamp_min(1)
    least = torch.maximum(prefill.key_first, torch.as_tensor(launch.key_min, device=prefill.device))[:, None]
    seen = (prefill.position + 1 - launch.causal_shift - least).clamp_min(0) * prefill.real
    if index.q_order is None:
        return density * seen.sum(-1, keepdim=True)
    rows = index.q_order.long()
    seen = seen[:, None].expand(-1, rows.shape[1], -1).gather(-1, rows.clamp_min(0)) * (rows >= 0)
    return density * seen.sum(-1)


def timed(work: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """Return what `work` returns, and how many seconds it took."""
    wait(device)
    start = time.perf_counter()
    result = work()
    wait(device)
    return result, time.perf_counter() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
