"""What a sparse prefill computes, as data: which keys every tile of query rows reads, per sample and head."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SparseIndex:
    """Keys of every tile of query rows: contiguous runs, single columns, arithmetic columns, diagonals.

    B samples, H tables, T = ceil(slots / tile) tiles, where slots = Sq, or the length of `q_order`. Tile t holds the
    slots [t * tile, (t + 1) * tile). Runs, columns and `grid` name key *slots*, which are keys unless `k_order` says
    otherwise; `slash` names keys. Nothing names a key twice for one row, except that `grid` and `slash` may meet: such
    a key counts once. What lies beyond the last key or the causal limit is masked, so a run may overhang.
    H is the length of `heads`, else the number of query heads Hq, or of key heads Hk: then query heads that read the
    same keys share a table.
    """

    tile: int  # query slots per tile
    run: int  # keys per run
    run_ptr: Tensor  # Long[B, H, T + 1]: offsets into run_start, ascending in (b, h, t) order
    run_start: Tensor  # Int[nnz]: first slot of a run, >= 0, any alignment
    run_full: Tensor  # Int[B, H, T]: so many runs come first that every row of the tile sees whole, without a mask
    col_ptr: Tensor | None = None  # Long[B, H, T + 1]
    col_idx: Tensor | None = None  # Int[nnz]: slots, ascending inside a tile
    q_order: Tensor | None = None  # Int[B, 1 | H, slots]: slot -> query row, -1 empty; a row at most once, maybe never
    k_order: Tensor | None = None  # Int[B, 1 | Hk, slots]: slot -> key, -1 empty
    grid: Tensor | None = None  # Int[B, H, 3]: stride, phase, enabled; slots phase + n * stride
    slash: Tensor | None = None  # Int[B, H, 2]: stride (0 off), delta; (pos(i) - pos(j) - delta) % stride = 0
    heads: Tensor | None = None  # Long[H]: the query heads covered; None = all of them

    @property
    def batch(self) -> int:
        return self.run_ptr.shape[0]

    @property
    def covered(self) -> int:
        """H, the number of tables."""
        return self.run_ptr.shape[1]

    @property
    def tiles(self) -> int:
        """T, the number of tiles."""
        return self.run_ptr.shape[2] - 1

    def to(self, device: torch.device | str) -> SparseIndex:
        """Return the same index on another device."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values}
        return SparseIndex(**moved)


@dataclass(frozen=True, eq=False)
class Keys:
    """Keys that stand for something other than one position each, such as pooled ones."""

    key_position: Tensor | None = None  # Long[B, 1 | Hk, W]: for the causal test; default: the key's own index
    bias: Tensor | None = None  # fp32 [B, 1 | Hk, W]: added to the scaled (and capped) logits


@dataclass(frozen=True, eq=False)
class Launch:
    """One call of the primitive: row i sees its kept keys j with key_min <= pos(j) <= limit(i).

    limit(i) = pos(i) - causal_shift, or that of row i // row_step * row_step: rows that step together.
    """

    index: SparseIndex
    causal_shift: int = 0  # tokens, >= 0
    key_min: int | Tensor = 0  # position, or Long[B]
    row_step: int = 1
    k: Tensor | None = None  # [B, Hk, W, D]: keys of its own in place of the layer's
    v: Tensor | None = None
    keys: Keys | None = None


def tile_count(slots: int, tile: int) -> int:
    return -(-slots // tile)
