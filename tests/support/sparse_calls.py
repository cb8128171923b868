"""Random calls of the sparse kernels: tensors, and indices of every kind."""

from __future__ import annotations

import torch

from vlmopt.kernels.sparse_attention import SparseIndex
from vlmopt.kernels.sparse_attention.index import tile_count

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def inputs(rows=100, width=None, heads=4, key_heads=2, d=64, batch=1, dtype=torch.float32):
    shapes = [(heads, rows), (key_heads, width or rows), (key_heads, width or rows)]
    return [torch.randn(batch, n, length, d).to(DEVICE, dtype) for n, length in shapes]


def random_index(q, k, tile=64, run=32, *, runs=0.3, columns=0.1, tables=None, full=True, **more):
    """Runs at any offset, columns beside them, some tiles empty; `full` marks what ends before the tile's first row."""
    q_order, k_order, grid = (more.get(name) for name in ("q_order", "k_order", "grid"))
    batch, rows, width = q.shape[0], q.shape[2], k.shape[2]
    tables = tables or q.shape[1]
    slots = width if k_order is None else k_order.shape[2]
    tiles = tile_count(rows if q_order is None else q_order.shape[2], tile)
    starts, singles, fulls, run_ptr, col_ptr = [], [], [], [0], [0]
    for b, h, t in torch.ones(batch, tables, tiles).nonzero().tolist():
        named = torch.zeros(slots + run, dtype=torch.bool)
        if grid is not None and grid[b, h, 2]:
            named[int(grid[b, h, 1]) : slots : int(grid[b, h, 0])] = True
        some = torch.arange(int(torch.randint(run, ())), slots, run)  # the last may overhang
        some = some[(torch.rand(len(some)) < runs) & ~named[some[:, None] + torch.arange(run)].any(1)]
        whole = (some + run <= t * tile + width - rows + 1) & full
        some = torch.cat([some[whole], some[~whole]])
        named[some[:, None] + torch.arange(run)] = True
        single = ((torch.rand(slots) < columns) & ~named[:slots]).nonzero()[:, 0]
        if torch.rand(()) < 0.1:
            some, whole, single = some[:0], whole[:0], single[:0]
        starts += some.tolist()
        singles += single.tolist()
        fulls.append(int(whole.sum()))
        run_ptr.append(len(starts))
        col_ptr.append(len(singles))

    def offsets(flat):
        flat = torch.tensor(flat)
        at = torch.arange(batch * tables * tiles).view(batch, tables, tiles)
        return torch.cat([flat[at], flat[at[..., -1:] + 1]], -1)

    return SparseIndex(
        tile, run, offsets(run_ptr), torch.tensor(starts).int(), torch.tensor(fulls).int().view(batch, tables, tiles),
        offsets(col_ptr), torch.tensor(singles).int(), **more,
    ).to(DEVICE)  # fmt: skip


def dense_index(q, k, tile, run):
    """Every run of every tile, the past ones marked as full."""
    (batch, heads, rows), width = q.shape[:3], k.shape[2]
    tiles, count = tile_count(rows, tile), tile_count(width, run)
    ptr = torch.arange(batch * heads * tiles + 1) * count
    at = torch.arange(batch * heads * tiles).view(batch, heads, tiles)
    past = (torch.arange(tiles) * tile + width - rows + 1).div(run, rounding_mode="floor")
    return SparseIndex(
        tile, run, torch.cat([ptr[at], ptr[at[..., -1:] + 1]], -1),
        (torch.arange(count) * run).int().repeat(batch * heads * tiles), past.int().repeat(batch, heads, 1),
    ).to(DEVICE)  # fmt: skip


def some_rows(batch, heads, rows, slots):
    """Slots for some of the rows, with gaps in the middle of tiles."""
    order = torch.rand(batch, heads, max(rows, slots)).argsort(-1)[..., :slots].int()
    return order.masked_fill((order >= rows) | (torch.rand(order.shape) < 0.1), -1)


def block_index(q, k, tile=128):
    """About half of the blocks of 128 keys, in any order within full and masked ones, one of them beyond the keys."""
    dense = dense_index(q, k, tile, 128)
    count, tiles = tile_count(k.shape[2], 128), dense.tiles
    starts, fulls, ptr = [], [], [0]
    for _ in range(q.shape[0] * q.shape[1]):
        for t in range(tiles):
            keep = torch.randperm(count + 1)[: count // 2 + 1]
            full = keep < dense.run_full[0, 0, t]
            starts.append(torch.cat([keep[full], keep[~full]]) * 128)
            fulls.append(int(full.sum()))
            ptr.append(ptr[-1] + len(keep))
    at = torch.arange(len(fulls)).view(dense.run_full.shape)
    ptr = torch.tensor(ptr)
    return SparseIndex(
        tile, 128, torch.cat([ptr[at], ptr[at[..., -1:] + 1]], -1), torch.cat(starts).int(),
        torch.tensor(fulls).int().view(at.shape),
    )  # fmt: skip
