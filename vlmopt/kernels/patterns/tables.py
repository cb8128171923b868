"""Make tables of an index in CSR form from masks, and join them along tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..sparse_attention.index import SparseIndex, tile_count
from .prefill import Prefill

Columns = tuple[Tensor, Tensor]  # col_ptr, col_idx
ENTRIES = 2**25  # entries of a mask at a time


def offsets(counts: Tensor) -> Tensor:
    """Return Long[B, H, T + 1]: where the entries of each tile start and end, if tile (b, h, t) has counts[b, h, t]."""
    ends = counts.flatten().cumsum(0).view(counts.shape)
    return torch.cat([ends - counts, ends[..., -1:]], -1)


def csr(keep: Tensor, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the kept entries of every tile.

    Args:
        keep: Bool[B, H, T, N].
        values: what is kept, broadcast to `keep`; default 0..N-1.

    Returns:
        Long[B, H, T + 1] offsets and Int[nnz] values, in order inside a tile.
    """
    ptr, at = offsets(keep.sum(-1, dtype=torch.int).long()), keep.flatten().nonzero()[:, 0]
    if values is None:
        return ptr, (at % keep.shape[-1]).int()
    where, step = torch.zeros_like(at), 1  # in `values`; on a CPU many times faster than masked_select
    for size, own in zip(reversed(keep.shape), reversed((1,) * (4 - values.dim()) + values.shape), strict=True):
        if own > 1:
            where += at % size * step
            step *= own
        at = at // size
    return ptr, values.int().flatten()[where]


def glue(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join the (offsets, values) of successive ranges of tiles into one table."""
    if len(parts) == 1:
        return parts[0]
    ptr = offsets(torch.cat([p.diff(dim=-1) for p, _ in parts], -1))
    glued = torch.empty(sum(len(v) for _, v in parts), dtype=parts[0][1].dtype, device=ptr.device)
    tile = 0
    for p, values in parts:
        tiles = p.shape[-1] - 1
        shift = ptr[..., tile] - p[..., 0]  # the tiles of a part stay neighbours in each (b, h)
        where = torch.arange(len(values), device=ptr.device)
        glued[where + shift.flatten().repeat_interleave((p[..., -1] - p[..., 0]).flatten())] = values
        tile += tiles
    return ptr, glued


def by_tiles(tiles: int, entries: int, build: Callable[[slice], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Build one table of `tiles` tiles, a few at a time where their masks have `entries` entries each."""
    step = max(1, ENTRIES // max(entries, 1))
    return glue([build(slice(t, min(t + step, tiles))) for t in range(0, tiles, step)])


def runs(keep: Tensor, starts: Tensor, full: Tensor, full_first: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return `run_ptr`, `run_start` and `run_full` of the kept runs Bool[B, H, T, N].

    Args:
        starts: first slots, broadcast to `keep`.
        full: Bool, broadcast to `keep`: every row of the tile sees the whole run.
        full_first: in every tile the full runs come before the others already.
    """
    whole = keep & full
    if full_first:
        ptr, start = csr(keep, starts)
    else:
        twice = starts.expand(*starts.shape[:-1], keep.shape[-1])
        ptr, start = csr(torch.cat([whole, keep & ~full], -1), torch.cat([twice, twice], -1))
    return ptr, start, whole.sum(-1).int()


def blocks_to_index(
    keep: Tensor, tile: int, run: int, prefill: Prefill, columns: Columns | None = None, full: Tensor | None = None
) -> SparseIndex:
    """Return the index that keeps whole blocks of `run` keys, block n from key n * run on, for rows in natural order.

    Args:
        keep: Bool[B, H, T, N]; nothing that it names is left out, so it should name no block above the diagonal.
        columns: offsets and slots of single keys, disjoint from the blocks.
        full: Bool, broadcast to `keep`: blocks that every row of the tile sees whole; default by natural positions.

    Raises:
        ValueError: `keep` does not have a tile for every `tile` rows, or its heads are not those of the prefill.
    """
    tiles = tile_count(prefill.rows, tile)
    if keep.shape[:3] != (prefill.batch, len(prefill.heads), tiles):
        raise ValueError(
            f"keep must be [{prefill.batch}, {len(prefill.heads)}, {tiles}, N] for tiles of {tile} rows, "
            f"got {list(keep.shape)}"
        )
    start = torch.arange(keep.shape[-1], device=keep.device) * run
    prefix = full is None and prefill.k_start is None
    if full is None:
        first = torch.arange(tiles, device=keep.device) * tile + prefill.offset[:, None]
        inside = start + run - 1 <= first[:, None, :, None]
        full = inside & (start >= prefill.key_first[:, None, None, None])
    run_ptr, run_start, run_full = runs(keep, start, full, full_first=prefix)
    col_ptr, col_idx = columns or (None, None)
    heads = None if prefill.all_heads else prefill.heads
    return SparseIndex(tile, run, run_ptr, run_start, run_full, col_ptr, col_idx, heads=heads)


def kept_keys(index: SparseIndex, width: int) -> Tensor:
    """Return Bool[B, H, T, width]: the key slots that the runs and columns of each tile name."""
    shape, device = index.run_full.shape, index.run_start.device
    tile = torch.arange(index.run_full.numel(), device=device)
    kept = torch.zeros(len(tile), width + index.run, dtype=torch.bool, device=device)
    owner = tile.repeat_interleave(index.run_ptr.diff(dim=-1).flatten())
    kept[owner[:, None], index.run_start[:, None].long() + torch.arange(index.run, device=device)] = True
    if index.col_ptr is not None and index.col_idx is not None:
        kept[tile.repeat_interleave(index.col_ptr.diff(dim=-1).flatten()), index.col_idx.long()] = True
    return kept[:, :width].view(*shape, width)


def one_of_many(index: SparseIndex, b: int, batch: int, tiles: int) -> SparseIndex:
    """Return the index of sample b of a batch whose longest has `tiles` tiles, from its own; others keep nothing.

    Rows and keys in their order only.
    """

    def spread(ptr: Tensor) -> Tensor:
        last = ptr[..., -1:].expand(-1, -1, tiles + 1 - ptr.shape[-1])
        own = torch.cat([ptr, last], -1)
        return torch.cat(
            [
                torch.zeros_like(own).expand(b, -1, -1),
                own,
                own[:, -1:, -1:].expand_as(own).expand(batch - b - 1, -1, -1),
            ]
        )

    full = index.run_full.new_zeros(batch, index.covered, tiles)
    full[b, :, : index.tiles] = index.run_full[0]
    col_ptr = None if index.col_ptr is None else spread(index.col_ptr)
    return replace(index, run_ptr=spread(index.run_ptr), run_full=full, col_ptr=col_ptr)
