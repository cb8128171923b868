"""Draw a head's sparse map: which blocks it reads, in natural order and in the order that makes them few."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .metrics import kept_cells, recall, sample_rows
from .patterns.base import blocks_to_index
from .patterns.blocks import block_grid
from .patterns.prefill import Prefill
from .sheet import Panel, sheet
from .sparse_attention.index import Launch


@dataclass(frozen=True, eq=False)
class Layout:
    """A plan and the order in which its map is laid out: slot -> row or key, Long; None for the natural one."""

    title: str
    plan: list[Launch]
    rows: Tensor | None = None
    keys: Tensor | None = None


def draw_head(
    prefill: Prefill,
    launches: Sequence[Launch],
    head: int,
    *,
    sample: int = 0,
    tile: int = 64,
    run: int = 64,
    detail: int = 1,
    size: int = 512,
    title: str = "",
    backend: str = "auto",
) -> Image.Image:
    """Draw what one query head reads: rows downwards, keys to the right, maps of `size` pixels a side, RGB.

    Grey: hidden by the causal limit or padding. White: left out. Blue: read, the darker the more. A plan that
    rearranges rows or keys gets a second panel in that order (`own_layout`). Captions give the blocks that are touched,
    also as a share of the causal ones in natural order, the share of pairs that are read, and the mean recall of up to
    576 rows.

    Args:
        tile, run: rows and keys of the blocks that are counted. detail: parts that a block's sides are drawn in.

    Raises:
        ValueError: `detail` does not divide `tile` and `run`.
    """
    if detail < 1 or tile % detail or run % detail:
        raise ValueError(f"detail must divide {tile} and {run}, got {detail}")
    one = replace(prefill, heads=torch.tensor([head], device=prefill.device))
    kept_share = float(recall(one, launches, sample_rows(one), backend)[sample].nanmean())
    layouts: list[Layout] = [Layout("in natural order", list(launches))]
    layouts += own_layout(prefill, launches, head, sample)
    fine = tile // detail, run // detail
    everything = every_block(one, *fine)
    panels: list[Panel] = []
    causal = 0
    for layout in layouts:
        kept, visible = (
            kept_cells(one, plan, *fine, backend, layout.rows, layout.keys)[sample, 0].cpu().numpy()
            for plan in (layout.plan, everything)
        )
        blocks, causal = int((coarse(kept, detail) > 0).sum()), causal or int((coarse(visible, detail) > 0).sum())
        pairs = kept.sum() / visible.sum()
        caption = f"{blocks} blocks, {blocks / causal:.1%} of the causal ones; {pairs:.1%} of all pairs"
        if not panels:
            caption += f"; recall {kept_share:.3f}"
        axes = ("row", "key") if layout.rows is None and layout.keys is None else ("row, in this order", "key")
        panels.append(Panel(kept, visible, prefill.rows, prefill.width, layout.title, caption, axes))
    return sheet(panels, title, size)


def coarse(cells: np.ndarray, detail: int) -> np.ndarray:
    """Sum [T, N] over detail x detail neighbours."""
    tall, wide = (-length % detail for length in cells.shape)
    padded = np.pad(cells, ((0, tall), (0, wide)))
    sums: np.ndarray = padded.reshape(padded.shape[0] // detail, detail, -1, detail).sum((1, 3))
    return sums


def every_block(prefill: Prefill, tile: int, run: int) -> list[Launch]:
    """Return the dense plan for `prefill.heads`."""
    visible = block_grid(prefill, tile, run).visible.expand(-1, len(prefill.heads), -1, -1)
    return [Launch(blocks_to_index(visible, tile, run, prefill))]


def own_layout(prefill: Prefill, launches: Sequence[Launch], head: int, sample: int = 0) -> list[Layout]:
    """Return the order that a plan works in for one head; empty if that is the natural one.

    Of a plan with arithmetic columns or diagonals only these, class by class (MMInference, arXiv 2504.16083): tokens by
    residue, that of the columns last. Its window would smear over all classes, and is read in natural order.
    """
    query_heads, key_heads = prefill.q.shape[1], prefill.k.shape[1]
    lines: list[Launch] = []
    rows: list[Tensor] = []
    keys: list[Tensor] = []
    stride = phase = 0
    for launch in launches:
        index = launch.index
        if index.heads is not None and not (index.heads == head).any():
            continue
        table = head * index.covered // query_heads if index.heads is None else int((index.heads == head).nonzero())
        repeated = class_of(launch, sample, table)
        if repeated[0]:
            stride, phase = repeated
            none = torch.zeros_like(index.run_ptr), torch.zeros_like(index.run_full)
            bare = replace(index, run_ptr=none[0], run_full=none[1], col_ptr=None, col_idx=None)
            lines.append(replace(launch, index=bare))
        for order, to, at in ((index.q_order, rows, table), (index.k_order, keys, head * key_heads // query_heads)):
            if order is not None:
                slots = order[sample, at if order.shape[1] > 1 else 0].long()
                to.append(slots[slots >= 0])
    if stride:
        of_keys = torch.arange(prefill.width, device=prefill.device)
        places = (class_major(position, stride, phase) for position in (prefill.position[sample], of_keys))
        return [Layout("repeating lines alone, class by class", lines, *places)]
    if not rows and not keys:
        return []
    orders = joined(rows, prefill.rows, prefill.device), joined(keys, prefill.width, prefill.device)
    return [Layout("in the order of computing", list(launches), *orders)]


def class_of(launch: Launch, sample: int, table: int) -> tuple[int, int]:
    """Return stride and phase of a launch's arithmetic columns, or the stride of its diagonals; (0, 0) without any."""
    grid, slash = launch.index.grid, launch.index.slash
    if grid is not None and grid[sample, table, 2]:
        return int(grid[sample, table, 0]), int(grid[sample, table, 1])
    return (0, 0) if slash is None else (int(slash[sample, table, 0]), 0)


def class_major(position: Tensor, stride: int, phase: int) -> Tensor:
    """Return Long[n]: order of ascending positions Long[n] by residue, residue `phase` last."""
    return ((position - phase - 1) % stride).argsort(stable=True)


def joined(parts: Iterable[Tensor], length: int, device: torch.device) -> Tensor | None:
    """Return 0..length-1: what the parts name, in their order, then the rest; None without parts."""
    named = [int(i) for part in parts for i in part.tolist()]
    return torch.tensor(list(dict.fromkeys([*named, *range(length)])), device=device) if named else None
