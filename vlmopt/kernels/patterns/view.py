"""A part of a prefill that one pattern is built for: some of the rows, some of the keys."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..sparse_attention.index import Launch, SparseIndex
from .base import Pattern
from .prefill import Prefill
from .tables import Columns


@dataclass(frozen=True, eq=False)
class View:
    """Row slots and key slots of a prefill; without `rows` and `keys` the rows and keys themselves.

    Both orders ascend, so a row sees a prefix of the key slots: its `limit` is the last of them. Patterns use only
    these coordinates. For all rows and all keys they are positions, for the keys of one modality their running number:
    a distance of one frame stays the same where other tokens stand between frames.
    """

    prefill: Prefill
    rows: Tensor | None = None  # Long[B, S']: row slot -> row, ascending, -1 (empty) last
    keys: Tensor | None = None  # Long[B, N]: key slot -> key, ascending, -1 (empty) last; real keys only
    consecutive: bool = True  # from each row to the next the limit grows by one

    @property
    def slots(self) -> int:
        return self.prefill.rows if self.rows is None else self.rows.shape[1]

    @property
    def width(self) -> int:
        """Key slots N."""
        return self.prefill.width if self.keys is None else self.keys.shape[1]

    @property
    def unpadded(self) -> bool:
        """Whether these are all rows and keys, and no sample names padding (known without a look at the data)."""
        p = self.prefill
        return self.rows is None and self.keys is None and p.q_len is p.k_len is p.k_start is None

    def on(self, heads: Tensor) -> View:
        """Return the view for other heads, Long[H']."""
        return replace(self, prefill=replace(self.prefill, heads=heads))

    @cached_property
    def real(self) -> Tensor:
        """Bool[B, S']: slots with a row that is not padding."""
        if self.rows is None:
            return self.prefill.real
        return (self.rows >= 0) & self.prefill.real.gather(1, self.rows.clamp_min(0))

    @cached_property
    def limit(self) -> Tensor:
        """Long[B, S']: the last key slot that a row may see; -1 without any, and where no real row is."""
        position = self.prefill.position
        if self.rows is not None:
            position = position.gather(1, self.rows.clamp_min(0))
        return torch.where(self.real, self.below(position + 1) - 1, -1)

    def below(self, position: Tensor) -> Tensor:
        """Return how many key slots hold a key left of `position` Long[B, n]; padding on the left counts like keys."""
        if self._ascending is None:
            return position.clamp(0, self.width)
        return torch.searchsorted(self._ascending, position.contiguous())

    @cached_property
    def _ascending(self) -> Tensor | None:
        """Long[B, N]: keys by slot, empty slots behind all keys; None for the keys themselves."""
        return None if self.keys is None else torch.where(self.keys < 0, self.prefill.width, self.keys)

    @cached_property
    def first(self) -> Tensor:
        """Long[B]: the first key slot with a real key."""
        return self.prefill.key_first if self.keys is None else torch.zeros_like(self.prefill.key_first)

    @cached_property
    def sink_end(self) -> Tensor:
        """Long[B]: key slots with a key of the prompt's sink lie left of it."""
        return self.below(self.prefill.sink_end[:, None])[:, 0]

    @cached_property
    def k(self) -> Tensor:
        """[B, Hk, N, D]: keys by slot (a copy where `keys` is given)."""
        k, keys = self.prefill.k, self.keys
        if keys is None:
            return k
        return torch.stack([x.index_select(1, i) for x, i in zip(k, keys.clamp_min(0), strict=True)])

    def q(self, slots: Tensor | slice) -> Tensor:
        """Return [B, H, n, D]: queries of the row slots Long[B, n], or of a range of them.

        An empty slot has the query of some row.
        """
        prefill, rows = self.prefill, self.rows
        if isinstance(slots, Tensor):
            rows = slots if rows is None else rows.gather(1, slots.clamp_min(0))
        elif rows is not None:
            rows = rows[:, slots]
        if rows is None:
            q = prefill.q[:, :, slots]
        else:
            b, heads, _, d = prefill.q.shape
            q = prefill.q.gather(2, rows.clamp_min(0)[:, None, :, None].expand(b, heads, -1, d))
        return q if prefill.all_heads else q[:, prefill.heads]

    def span(self, tile: int) -> tuple[Tensor, Tensor]:
        """Return the lowest and highest limit Long[B, T] of each tile's real rows; a tile without any has (N, -1)."""
        lowest = tiled(self.limit.where(self.real, self.width), tile, self.width).amin(-1)
        return lowest, tiled(self.limit.where(self.real, -1), tile, -1).amax(-1)

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the last min(count, S') real rows: slots Long[B, R] and limits, -1 (leading) where there are fewer."""
        count = min(count, self.slots)
        if self.unpadded:
            slots = torch.arange(self.slots - count, self.slots, device=self.prefill.device)
            slots = slots.expand(self.prefill.batch, count)
        else:
            number = torch.arange(self.slots, device=self.prefill.device)
            slots = torch.where(self.real, number, -1).topk(count, sorted=True).values.flip(-1)
        return slots, torch.where(slots < 0, -1, self.limit.gather(1, slots.clamp_min(0)))

    def index(
        self, tile: int, run: int, table: tuple[Tensor, Tensor, Tensor], columns: Columns | None = None, **extra: Any
    ) -> SparseIndex:
        """Make the index of this view's rows, keys and heads; `extra` fields come on top."""
        heads = None if self.prefill.all_heads else self.prefill.heads
        orders = {"q_order": self.rows, "k_order": self.keys}
        given = {k: v if v is None else v[:, None].int() for k, v in orders.items()}
        return SparseIndex(tile, run, *table, *(columns or (None, None)), **{**given, "heads": heads, **extra})


def tiled(x: Tensor, tile: int, fill: int | bool) -> Tensor:
    """Cut [..., S] into tiles [..., T, tile], the last one filled up."""
    tiles: Tensor = pad(x, (0, -x.shape[-1] % tile), value=fill).unflatten(-1, (-1, tile))
    return tiles


class ViewPattern(Pattern):
    """Base of patterns that can be built for a part of the rows and keys, as boundaries need."""

    def build(self, prefill: Prefill) -> list[Launch]:
        return self.select(View(prefill))

    @abstractmethod
    def select(self, view: View) -> list[Launch]:
        """Choose the keys of the rows and heads of the view, in its slots."""
