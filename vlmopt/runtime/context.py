"""What one forward pass and one cache need to know: plain records, no model code.

Two coordinate systems, never mixed: *logical* (the sequence that `generate` knows) and *physical* (what a layer
stores).
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class VisualSpan:
    """One image, tile, frame or video of one sample, as the projector returned it."""

    row: int  # row of the (expanded) batch
    index: Tensor  # Long[n] logical offsets inside the chunk, ascending; may have gaps (row breaks, time stamps)
    kind: str  # "image" | "tile" | "video" | "run"
    item: int  # running number inside the row
    grid: tuple[int, int, int] | None  # (t, h, w) after merging; None if unknown
    coords: Tensor  # Long[n, 3] (t, y, x); -1 where a token is no patch


@dataclass
class PicturePart:
    """What a chunk of a prompt holds of one picture."""

    whole: VisualSpan  # its `index` counts from the first chunk of the call, its `item` too
    inside: Tensor  # Long[k] which of its tokens are here
    index: Tensor  # Long[k] logical offsets inside the chunk


@dataclass
class VisualContext:
    """Where visual tokens are in the current chunk and how they group. Lives for one prefill."""

    visual: Tensor  # Bool[B, L]
    span: Tensor  # Long[B, L] running number of the span inside the row, -1 for text
    ordinal: Tensor  # Long[B, L] running number of the visual token inside the row
    spans: list[VisualSpan]
    expand: int  # rows per original sample (beams, several returned sequences)
    attention_mask2d: Tensor | None  # Bool[B, L]
    grouped: bool  # False: the encoder's record did not match, runs of ids stand in for images
    parts: list[PicturePart] = field(default_factory=list)  # where a chunk of a prompt cuts pictures: what they are
    held: Tensor | None = None  # Bool[B, L] visual places that stay, since they predict; None without any
    read: Tensor | None = None  # Bool[B, L] padding that stays, since `generate` reads its logits


@dataclass
class Rows:
    """Physical rows of one stage in the current chunk."""

    log: Tensor  # Long[B, W] logical offset inside the chunk
    valid: Tensor | None  # Bool[B, W]; None when every row is real


class Lease:
    """Shared by a session and the caches it filled; ends with `restore`."""

    def __init__(self) -> None:
        self.alive = True


@dataclass
class CacheState:
    """What a pruned cache remembers. Lives on the cache object and is copied with it."""

    lease: Lease
    index: dict[int, Tensor] = field(default_factory=dict)  # stage -> Long[B, n] logical index of each physical slot
    valid: dict[int, Tensor | None] = field(default_factory=dict)
    shift: dict[int, Tensor] = field(default_factory=dict)  # stage -> Long[B], positions moved by "repack"
    tail: int = 0  # logical indices >= tail are stored one to one in every stage
    dropped: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # layer -> slots it does not store
    pending: dict[int, int] = field(default_factory=dict)  # layer -> what its next update will have dropped

    def __deepcopy__(self, memo: dict[int, Any]) -> CacheState:
        """A copied cache stays on the lease of the session that filled it."""
        twin = copy.copy(self)
        for table in ("index", "valid", "shift", "dropped", "pending"):
            setattr(twin, table, copy.deepcopy(getattr(self, table), memo))
        return twin

    def columns(self, stage: int, upto: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """Logical index and validity, both [B, n], of every stored slot below `upto`; (None, None) = all of them."""
        if stage not in self.index:
            return None, None
        index, valid = self.index[stage].to(device), self.valid[stage]
        tail = torch.arange(self.tail, upto, device=device).expand(index.shape[0], -1)
        if valid is not None:
            valid = torch.cat([valid.to(device), torch.ones_like(tail, dtype=torch.bool)], 1)
        return torch.cat([index, tail], 1), valid

    def map_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply a change of the batch dimension (beam reordering, repetition) to every index tensor."""
        for table in (self.index, self.valid, self.shift):
            for stage, value in table.items():
                if value is not None:
                    table[stage] = change(value)


@dataclass(eq=False, kw_only=True)
class Chunk:
    """The rows of one forward in both coordinate systems."""

    batch: int
    q: int  # logical query length
    past: int  # logical length of the cache before this chunk
    device: torch.device
    context: VisualContext | None = None  # None: nothing to prune
    state: CacheState | None = None
    rows: dict[int, Rows] = field(default_factory=dict)  # stage -> rows
    memo: dict[Any, Any] = field(default_factory=dict)

    def stored(self, stage: int) -> int:
        """Key slots of a layer of `stage`, those of this step among them."""
        if stage in self.rows:
            columns, _ = self.columns(stage)
            assert columns is not None
            return columns.shape[1]
        if self.state is None or stage not in self.state.index:
            return self.past + self.q
        return self.state.index[stage].shape[1] + self.past + self.q - self.state.tail

    def remember(self, key: tuple[Any, ...], source: object, make: Callable[[], Any]) -> Any:
        """`make()` once per (key, source object): the decoder's loop passes the same tensors to every layer."""
        full = (*key, id(source))
        if full not in self.memo:
            self.memo[full] = (source, make())  # holding the source keeps its id from being reused
        return self.memo[full][1]

    def current(self, stage: int) -> Rows:
        """Rows of `stage`, the identity when it was not cut."""
        if stage in self.rows:
            return self.rows[stage]
        return Rows(torch.arange(self.q, device=self.device).expand(self.batch, -1), None)

    def columns(self, stage: int) -> tuple[Tensor | None, Tensor | None]:
        """Logical index and validity [B, n] of every key a layer of `stage` sees; (None, None) = identity."""
        return self.remember(("columns", stage, stage in self.rows), None, lambda: self._columns(stage))

    def _columns(self, stage: int) -> tuple[Tensor | None, Tensor | None]:
        index = valid = None
        if self.state is not None:
            index, valid = self.state.columns(stage, self.past, self.device)
        if index is None and stage not in self.rows:
            return None, None
        if index is None:
            index = torch.arange(self.past, device=self.device).expand(self.batch, -1)
        rows = self.current(stage)
        if valid is not None or rows.valid is not None:
            old = valid if valid is not None else torch.ones_like(index, dtype=torch.bool)
            new = rows.valid if rows.valid is not None else torch.ones_like(rows.log, dtype=torch.bool)
            valid = torch.cat([old, new.to(old.device)], 1)
        return torch.cat([index, rows.log.to(index.device) + self.past], 1), valid
