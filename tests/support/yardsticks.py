"""What a choice of blocks is measured against, at its density: the best there is, blind chance, a fixed shape."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmopt.kernels.metrics import causal_cells
from vlmopt.kernels.patterns.base import blocks_to_index, tile_span
from vlmopt.kernels.patterns.blocks import block_grid, by_block, ranked, spread
from vlmopt.kernels.patterns.prefill import Prefill
from vlmopt.kernels.patterns.probe import probe_rows
from vlmopt.kernels.sparse_attention.index import Launch

KINDS = ("oracle", "random", "a_shape")
WEIGHTS = 2**25  # dense weights at a time


def yardstick(kind: str, prefill: Prefill, cells: Tensor, tile: int = 64, run: int = 64, seed: int = 0) -> list[Launch]:
    """Return a plan of whole blocks that keeps `cells` fp32 [B, H] pairs of row and key, up to one block per head.

    "oracle": the blocks that hold most of the dense attention, in order, over the whole map; no choice of blocks has a
    better mean recall. It computes all of the dense attention. "random": the sink, the diagonal, then others at random.
    "a_shape": the sink, then by distance from the diagonal.

    Raises:
        ValueError: an unknown kind.
    """
    grid = block_grid(prefill, tile, run)
    shape = (prefill.batch, len(prefill.heads), *grid.visible.shape[2:])
    if kind == "oracle":
        scores, first = block_mass(prefill, tile, run), torch.zeros_like(grid.first)
    elif kind == "random":
        scores = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(
            prefill.device
        )
        first = grid.forced
    elif kind == "a_shape":
        position = torch.arange(shape[3], device=prefill.device) * run
        scores = (position - tile_span(prefill, tile)[0][:, None, :, None]).float().expand(shape)
        first = grid.first
    else:
        raise ValueError(f"a yardstick is one of {', '.join(KINDS)}; got {kind!r}")
    return best_blocks(prefill, scores, first, cells, tile, run)


def best_blocks(prefill: Prefill, scores: Tensor, first: Tensor, cells: Tensor, tile: int, run: int) -> list[Launch]:
    """Return the plan of the best blocks of each head's map by scores fp32 [B, H, T, N], blocks `first` before all.

    As many as come nearest to `cells` fp32 [B, H] pairs of row and key.
    """
    visible = block_grid(prefill, tile, run).visible
    sizes, seen, first = (
        x.expand_as(scores).flatten(2) for x in (causal_cells(prefill, tile, run), visible, first & visible)
    )
    order = ranked(scores.flatten(2).masked_fill(~seen, -torch.inf), first)
    sizes = sizes.gather(-1, order)
    chosen = sizes.cumsum(-1) - sizes / 2 <= cells[..., None]
    keep = (spread(order, chosen) & seen).view_as(scores)
    return [Launch(blocks_to_index(keep, tile, run, prefill))]


def block_mass(prefill: Prefill, tile: int, run: int) -> Tensor:
    """Return fp32 [B, H, T, N]: the dense attention inside each block, summed over the rows of the tile."""
    step = max(1, WEIGHTS // (prefill.batch * len(prefill.heads) * prefill.width * tile)) * tile
    parts = []
    for start in range(0, prefill.rows, step):
        rows = torch.arange(start, min(start + step, prefill.rows), device=prefill.device)
        weights = by_block(probe_rows(prefill, rows=rows.expand(prefill.batch, -1)), run)
        parts.append(by_block(weights.mT, tile).mT)
    return torch.cat(parts, 2)
