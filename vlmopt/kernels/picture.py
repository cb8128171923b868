"""A head's sparse map as an image: which blocks it reads, in natural order and in the order that makes them few."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .metrics import kept_cells, recall, sample_rows
from .patterns.base import Prefill, blocks_to_index
from .patterns.blocks import block_grid
from .sparse_attention.index import Launch

HIDDEN, SKIPPED, TOUCHED, WHOLE = (232, 232, 236), (255, 255, 255), (166, 200, 236), (8, 48, 107)
EDGE, CAPTION = 12, 20  # pixels


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
    size: int = 512,
    backend: str = "auto",
) -> Image.Image:
    """RGB image of what one query head reads; rows downwards, keys to the right, `size` pixels a side.

    Grey: hidden by the causal limit or padding. White: left out. Blue: read, the darker the more of the block. A plan
    that rearranges rows or keys gets a second panel in that order (`own_layout`). Captions give the share of the causal
    blocks and cells that are read, and the mean recall of up to 576 rows.
    """
    one = replace(prefill, heads=torch.tensor([head], device=prefill.device))
    kept_share = float(recall(one, launches, sample_rows(one), backend)[sample].nanmean())
    layouts: list[Layout] = [Layout("natural order", list(launches))]
    layouts += own_layout(prefill, launches, head, sample)
    everything = every_block(one, tile, run)
    panels: list[Image.Image] = []
    for layout in layouts:
        kept, visible = (
            kept_cells(one, plan, tile, run, backend, layout.rows, layout.keys)[sample, 0].cpu().numpy()
            for plan in (layout.plan, everything)
        )
        blocks, cells = (kept > 0).sum() / (visible > 0).sum(), kept.sum() / visible.sum()
        caption = f"{layout.title}: {blocks:.1%} of blocks, {cells:.1%} of cells"
        panels.append(panel(kept, visible, caption if panels else f"{caption}, recall {kept_share:.3f}", size))
    return side_by_side(panels)


def every_block(prefill: Prefill, tile: int, run: int) -> list[Launch]:
    """The dense plan for `prefill.heads`."""
    visible = block_grid(prefill, tile, run).visible.expand(-1, len(prefill.heads), -1, -1)
    return [Launch(blocks_to_index(visible, tile, run, prefill))]


def own_layout(prefill: Prefill, launches: Sequence[Launch], head: int, sample: int = 0) -> list[Layout]:
    """The order that a plan works in for one head; empty if that is the natural one.

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
        return [Layout("repeating lines, class by class", lines, *places)]
    if not rows and not keys:
        return []
    orders = joined(rows, prefill.rows, prefill.device), joined(keys, prefill.width, prefill.device)
    return [Layout("own order", list(launches), *orders)]


def class_of(launch: Launch, sample: int, table: int) -> tuple[int, int]:
    """Stride and phase of a launch's arithmetic columns, or the stride of its diagonals; (0, 0) without any."""
    grid, slash = launch.index.grid, launch.index.slash
    if grid is not None and grid[sample, table, 2]:
        return int(grid[sample, table, 0]), int(grid[sample, table, 1])
    return (0, 0) if slash is None else (int(slash[sample, table, 0]), 0)


def class_major(position: Tensor, stride: int, phase: int) -> Tensor:
    """Long[n]: order of ascending positions Long[n] by residue, residue `phase` last."""
    return ((position - phase - 1) % stride).argsort(stable=True)


def joined(parts: Iterable[Tensor], length: int, device: torch.device) -> Tensor | None:
    """All of 0..length-1: what the parts name, in their order, then the rest; None without parts."""
    named = [int(i) for part in parts for i in part.tolist()]
    return torch.tensor(list(dict.fromkeys([*named, *range(length)])), device=device) if named else None


def panel(kept: np.ndarray, visible: np.ndarray, caption: str, size: int) -> Image.Image:
    """A map [T, N] of kept among visible cells, `size` pixels a side, over its caption."""
    filled = np.divide(kept, visible, out=np.zeros_like(kept), where=visible > 0)[..., None]
    colours = np.array(TOUCHED) + filled * (np.array(WHOLE) - np.array(TOUCHED))
    colours = np.where(filled > 0, colours, SKIPPED)
    colours = np.where(visible[..., None] > 0, colours, HIDDEN)
    blocks = Image.fromarray(colours.round().astype(np.uint8))
    finer = Image.Resampling.NEAREST if max(kept.shape) <= size else Image.Resampling.BOX
    image = Image.new("RGB", (size, size + CAPTION), SKIPPED)
    image.paste(blocks.resize((size, size), finer))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, size - 1, size - 1), outline=HIDDEN)
    draw.text((0, size + 4), caption, fill=(0, 0, 0))
    return image


def side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    width, height = panels[0].size
    image = Image.new("RGB", (EDGE + (width + EDGE) * len(panels), height + 2 * EDGE), SKIPPED)
    for i, part in enumerate(panels):
        image.paste(part, (EDGE + i * (width + EDGE), EDGE))
    return image
