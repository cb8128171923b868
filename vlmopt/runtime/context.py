"""What one forward pass and one cache need to know: plain records, no model code.

Two coordinate systems, never mixed: *logical* (the sequence that `generate` knows) and *physical* (what a layer
stores).
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from .followed import PerSample
from .slots import Slots

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class VisualSpan:
    """One image, tile, frame or video of one sample, as the projector returned it."""

    batch_row: int  # of the batch, which beams expand
    index: Tensor  # Long[n] logical offsets inside the chunk, ascending; may have gaps (row breaks, time stamps)
    kind: str  # "image" | "tile" | "video" | "run"
    item: int  # running number inside the batch row
    grid: tuple[int, int, int] | None  # (t, h, w) after merging; None if unknown
    coords: Tensor  # Long[n, 3] (t, y, x); -1 where a token is no patch


@dataclass(frozen=True, eq=False)
class ImagePart:
    """What a chunk of a prompt holds of one image."""

    whole: VisualSpan  # its `index` counts from the first chunk of the call, its `item` too
    inside: Tensor  # Long[k] which of its tokens are here
    index: Tensor  # Long[k] logical offsets inside the chunk


@dataclass(frozen=True, eq=False)
class VisualContext:
    """Where visual tokens are in the current chunk and how they group. Lives for one prefill."""

    visual: Tensor  # Bool[B, L]
    span: Tensor  # Long[B, L] running number of the span inside the batch row, -1 for text
    ordinal: Tensor  # Long[B, L] running number of the visual token inside the batch row
    spans: list[VisualSpan]
    expand: int  # rows per original sample (beams, several returned sequences)
    attention_mask2d: Tensor | None  # Bool[B, L]
    grouped: bool  # False: the encoder's record did not match, runs of ids stand in for images
    parts: list[ImagePart] = field(default_factory=list)  # where a chunk of a prompt cuts images: what they are
    held: Tensor | None = None  # Bool[B, L] visual places that stay, since they predict; None without any
    read: Tensor | None = None  # Bool[B, L] padding that stays, since `generate` reads its logits


@dataclass(frozen=True, eq=False)
class Rows:
    """Physical rows of one stage in the current chunk."""

    log: Tensor  # Long[B, W] logical offset inside the chunk
    valid: Tensor | None  # Bool[B, W]; None when every row is real


class Lease:
    """Shared by a session and the caches it filled; ends with `restore`."""

    def __init__(self) -> None:
        self.alive = True


class Own(NamedTuple):
    """The key slots of a layer that has evicted keys; before, it stores what its stage does."""

    stage: int
    layer: int


Store: TypeAlias = int | Own  # whose key slots are meant: those of every layer of a stage, or of one layer


@dataclass
class CacheState(PerSample):
    """What a pruned cache remembers. Lives on the cache object and is copied with it."""

    lease: Lease
    index: dict[Store, Tensor] = field(default_factory=dict)  # Long[B, n] logical index of each physical slot
    valid: dict[Store, Tensor | None] = field(default_factory=dict)
    heads: dict[Store, Tensor] = field(default_factory=dict)  # Long[B, Hk, m] the same of the first m, per head
    shift: dict[int, Tensor] = field(default_factory=dict)  # stage -> Long[B], positions moved by "repack"
    tail: int = 0  # logical indices >= tail are stored one to one in every stage
    dropped: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # layer -> slots it does not store
    pending: dict[int, int] = field(default_factory=dict)  # layer -> what its next update will have dropped
    seen: Tensor | None = None  # Long[B, slots] of a static cache: logical index of every slot, -1 where it is a filler

    def __deepcopy__(self, memo: dict[int, Any]) -> CacheState:
        """Keep a copied cache on the lease of the session that filled it."""
        twin = copy.copy(self)
        for table in ("index", "valid", "heads", "shift", "dropped", "pending"):
            setattr(twin, table, copy.deepcopy(getattr(self, table), memo))
        return twin

    def store(self, stage: int, layer: int) -> Store:
        """Return where a layer's slots are written down."""
        own = Own(stage, layer)
        return own if own in self.index else stage

    def columns(self, store: Store, upto: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """Return logical index and validity, both [B, n], of every stored slot below `upto`; (None, None): all.

        Where heads keep keys of their own, the index is that of the first one: masks treat what any of them kept alike.
        """
        if store not in self.index:
            return None, None
        index, valid = self.index[store].to(device), self.valid[store]
        tail = torch.arange(self.tail, upto, device=device).expand(index.shape[0], -1)
        if valid is not None:
            valid = torch.cat([valid.to(device), torch.ones_like(tail, dtype=torch.bool)], 1)
        return torch.cat([index, tail], 1), valid

    def crop(self, length: int) -> None:
        """Forget logical indices from `length` < `tail` on.

        Raises:
            ValueError: a layer does not store all of them, so that its newest slots are others; nothing is changed.
        """
        keep = {store: index.shape[1] - (self.tail - length) for store, index in self.index.items()}
        for store, index in self.index.items():
            expected = torch.arange(length, self.tail, device=index.device)
            whole = keep[store] >= 0 and bool((index[:, keep[store] :] == expected).all())
            if whole and store in self.heads:
                own = self.heads[store][..., keep[store] :]
                whole = bool((own == expected[: own.shape[-1]]).all())
            if not whole:
                raise ValueError(
                    f"cannot crop this cache to {length} tokens: the removed part holds dropped visual tokens or "
                    "evicted keys. Crop behind the prompt, or start from a fresh cache."
                )
        for store, count in keep.items():
            valid = self.valid[store]
            self.index[store] = self.index[store][:, :count]
            self.valid[store] = None if valid is None else valid[:, :count]
            if store in self.heads:
                self.heads[store] = self.heads[store][..., :count]
        self.tail, self.seen = length, None

    def map_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply it to every index tensor."""
        tables: tuple[dict[Any, Any], ...] = (self.index, self.valid, self.heads, self.shift)
        for table in tables:
            for key, value in table.items():
                if value is not None:
                    table[key] = change(value)
        self.seen = None if self.seen is None else change(self.seen)


def stage_of(store: Store) -> int:
    return store if isinstance(store, int) else store.stage


@dataclass(frozen=True, eq=False, kw_only=True)
class Chunk(Slots):
    """The rows of one forward in both coordinate systems; what layers find out is added to its tables, once."""

    embeds: Tensor  # [B, L, d] what the decoder was given
    past: int  # logical length of the cache before this chunk
    rows: dict[int, Rows] = field(default_factory=dict)  # stage -> rows
    key_length: dict[int, int] = field(default_factory=dict)  # layer -> physical keys it attends to
    memo: dict[Any, Any] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Rows of the batch."""
        return self.embeds.shape[0]

    @property
    def q(self) -> int:
        """Logical query length."""
        return self.embeds.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the decoder is given its rows."""
        return self.embeds.device

    @property
    def state(self) -> CacheState | None:
        """What the cache remembers of tokens that were dropped; None where none were."""
        return self.find(CacheState)

    def store(self, stage: int, layer: int) -> Store:
        """Return where a layer's slots are written down."""
        state = self.state
        return stage if state is None else state.store(stage, layer)

    def stored(self, store: Store) -> int:
        """Return the number of key slots of a layer, those of this step among them."""
        columns, _ = self.columns(store) if stage_of(store) in self.rows else (None, None)
        if columns is not None:
            return columns.shape[1]
        state = self.state
        if state is None or store not in state.index:
            return self.past + self.q
        return state.index[store].shape[1] + self.past + self.q - state.tail

    def remember(self, key: tuple[Any, ...], source: object, make: Callable[[], Made]) -> Made:
        """Return `make()`, called once per (key, source object).

        The decoder's loop passes the same tensors to every layer. A key holds what Python reads back from its `repr`,
        so no device: `torch.compile` finds values in here by the text of their keys.
        """
        full = (*key, id(source))
        if full not in self.memo:
            self.memo[full] = (source, make())  # holding the source keeps its id from being reused
        made: Made = self.memo[full][1]  # a key always names values of one type
        return made

    def current(self, stage: int) -> Rows:
        """Return the rows of `stage`, the identity when it was not cut."""
        if stage in self.rows:
            return self.rows[stage]
        return Rows(torch.arange(self.q, device=self.device).expand(self.batch, -1), None)

    def columns(self, store: Store) -> tuple[Tensor | None, Tensor | None]:
        """Return logical index and validity [B, n] of every key a layer sees; (None, None) = identity."""
        return self.remember(("columns", store, stage_of(store) in self.rows), None, lambda: self._columns(store))

    def _columns(self, store: Store) -> tuple[Tensor | None, Tensor | None]:
        index, valid, stage = None, None, stage_of(store)
        if self.state is not None:
            index, valid = self.state.columns(store, self.past, self.device)
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
