"""List the keys of some tiles as rectangles: where they lie, at which positions, and which of them need a mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .index import Keys, Launch
from .inputs import AttentionInputs

FAR = 1 << 24  # a position beyond all others
LISTED = 1 << 16  # keys that are listed together, which amortises the arithmetic
FINE = 16  # columns, in units in which tiles are called alike


@dataclass(frozen=True, eq=False)
class Rows:
    """Query slots of G tiles; where several heads share a table, R = heads * tile, else R = tile."""

    at: Tensor  # Long[G, R]: element of q at which the row starts; anywhere in q where there is no row
    target: Tensor  # Long[G, R]: row of the output as [B * heads * Sq, D]; its end where there is no row
    limit: Tensor  # Long[G, R]: last position seen; -1 where there is no row
    place: Tensor  # Long[G, R]: position


@dataclass(frozen=True, eq=False)
class Kept:
    """Keys of G tiles."""

    at_k: Tensor  # Long[G, n]: element of k at which the key starts
    at_v: Tensor
    sure: int  # the first keys, of n, that all rows see
    position: Tensor  # Long[G, n - sure] of the others; FAR where there is no key: another one is read in its place
    bias: Tensor | None  # [G, n]; then sure = 0
    masked: list[tuple[slice, bool]]  # of n: keys that some rows do not see; whether the mask is that of every tile
    classes: tuple[slice, Tensor, Tensor] | None  # of n: keys whose class only rows of that class see; both classes


class KeyLists:
    """An index in the coordinates of one call."""

    def __init__(self, inputs: AttentionInputs, launch: Launch) -> None:
        q, k, index, keys = inputs.q, inputs.k, launch.index, inputs.keys or Keys()
        self.q, self.k, self.v, self.index, self.keys = q, k, inputs.v, index, keys
        heads = torch.arange(q.shape[1], device=q.device) if index.heads is None else index.heads
        self.heads = heads.view(index.covered, -1)  # [H, heads that share the table]
        self.numbers = torch.arange(heads.numel(), device=q.device).view_as(self.heads)  # of heads in the output
        self.end = len(q) * q.shape[2] * heads.numel()  # rows of the output
        self.key_head = self.heads[:, 0] // (q.shape[1] // k.shape[1])  # [H]
        self.slots = k.shape[2] if index.k_order is None else index.k_order.shape[2]
        self.plain = index.k_order is None and keys.key_position is None  # slots are positions
        start, step = inputs.key_first, launch.row_step
        self.first = start.clamp_min(launch.key_min)  # [B]: first position seen
        natural = torch.arange(q.shape[2], device=q.device).expand(len(q), 1, -1)
        order = natural if index.q_order is None else index.q_order.long()
        order = pad(order, (0, index.tiles * index.tile - order.shape[2]), value=-1)
        self.row = order.view(len(q), -1, index.tiles, index.tile)  # [B, 1 | H, T, tile]
        q_len, offset, start = (x[:, None, None, None] for x in (inputs.row_end, inputs.offset, start))
        self.place = self.row + offset
        real = (self.row >= 0) & (self.row < q_len) & (self.place >= start)
        self.limit = torch.where(real, self.row // step * step + (offset - launch.causal_shift), -1)
        self._count()

    def _count(self) -> None:
        """Count the keys per tile by kind, [B, H, T]."""
        index, last = self.index, self.limit.amax(-1)
        seen = last >= self.first[:, None, None]
        self.runs = index.run_ptr.diff(dim=-1) * seen
        zero = torch.zeros_like(self.runs)
        self.columns = zero if index.col_ptr is None else index.col_ptr.diff(dim=-1) * seen
        self.grids = self.grid_from = self.slashes = self.residues = zero
        if index.grid is not None:
            stride, phase, on = index.grid.long().unbind(-1)
            stride, phase, on = stride.clamp_min(1)[..., None], phase[..., None], on[..., None]
            low = self.first[:, None, None] if self.plain else zero
            self.grid_from = zero + (-((phase - low) // stride)).clamp_min(0)  # ceil((low - phase) / stride)
            end = (last if self.plain else zero + self.slots - 1) - phase
            self.grids = ((end // stride + 1 - self.grid_from).clamp_min(0)) * seen * on
        if index.slash is not None:
            stride = index.slash[..., 0].long()[..., None]
            self.residues = (self._residues(self.place, self.limit, index.slash[:, :, None, None].long()) < FAR).sum(-1)
            self.slashes = (last // stride.clamp_min(1) + 1) * seen * (stride > 0)

    def _residues(self, place: Tensor, limit: Tensor, slash: Tensor) -> Tensor:
        """Return [..., tile]: the distinct (position - delta) % stride of the rows of a tile, ascending, then FAR."""
        stride, delta = slash.unbind(-1)
        residue = torch.where(limit < 0, FAR, (place - delta) % stride.clamp_min(1)).sort(-1).values
        again = residue.diff(dim=-1) == 0
        return residue.masked_fill(pad(again, (1, 0)), FAR).sort(-1).values

    def alike(self) -> Iterator[Tensor]:
        """Yield tiles (flat numbers, Long[G]) that read about as many keys, longest lists first, without empty ones."""
        runs = _rounded(self.runs)
        rest = _rounded(-(-(self.columns + self.grids + self.slashes * self.residues) // FINE))
        kinds, kind = (runs << 32 | rest).flatten().unique(return_inverse=True)
        members = kind.argsort(stable=True).split(kind.bincount(minlength=len(kinds)).tolist())
        for code, tiles in zip(reversed(kinds.tolist()), reversed(members), strict=True):
            width = (code >> 32) * self.index.run + (code & 0xFFFFFFFF) * FINE
            if width:
                yield from tiles.split(max(1, LISTED // width))

    def rows(self, tiles: Tensor) -> Rows:
        b, h, t = self._where(tiles)
        row, limit, place = (x[b, h if x.shape[1] > 1 else 0, t][:, None] for x in (self.row, self.limit, self.place))
        head, number, b = self.heads[h][..., None], self.numbers[h][..., None], b[:, None, None]
        s, each = self.q.stride(), self.heads.numel() * self.q.shape[2]
        at = (b * s[0] + head * s[1]) + row.clamp_min(0) * s[2]  # [G, heads that share the table, tile]
        target = (b * each + number * self.q.shape[2] + row).masked_fill(limit < 0, self.end)
        limit, place = (x.expand_as(at).flatten(1) for x in (limit, place))
        return Rows(at.flatten(1), target.flatten(1), limit, place)

    def keys_of(self, tiles: Tensor, rows: Rows) -> Kept:
        """Return the keys of `tiles`, whose rows these are."""
        limit, run, (b, h, t) = rows.limit, self.index.run, self._where(tiles)
        head, first = self.key_head[h], self.first[b, None]
        least = limit.masked_fill(limit < 0, FAR).amin(1, keepdim=True)  # all rows see keys up to here
        starts = _entries(self.index.run_start, self.index.run_ptr[b, h, t], self.runs[b, h, t])
        sure = 0  # runs that all rows of all tiles see, at little cost; run_full need not be trusted
        if self.plain and self.keys.bias is None:
            sure = _leading((starts >= first) & (starts + run <= (least + 1).clamp_max(self.slots)))
        within = torch.arange(run, device=b.device)
        listed = (starts[:, sure:, None] + within).flatten(1)
        named = [x for x in (listed, self._columns(b, h, t), self._grid(b, h, t)) if x is not None]
        crossing = self._diagonals(b, h, t)
        position, key = self._locate(b, head, named[0] if len(named) == 1 else torch.cat(named, 1), crossing)
        dead = (position < first) | (position > limit.amax(1, keepdim=True))
        if self.keys.bias is not None:
            dead |= _pick(self.keys.bias, b, head, key) == -torch.inf
        position = position.masked_fill(dead, FAR)
        if position.shape[1]:  # padding may hold NaN, and 0 * NaN is NaN: where no row sees, read what some row sees
            instead = starts[:, :1] if sure else key.gather(1, position.argmin(1, keepdim=True))
            key = key.where(~dead, instead)
        bias = None if self.keys.bias is None else _pick(self.keys.bias, b, head, key)
        masked, at = [], 0
        for part in named if crossing is None else (*named, crossing):
            end = at + part.shape[1]
            at += _leading(position[:, at:end] <= least)
            if at < end:
                same = _alike(limit, limit) and _alike(position[:, at:end], limit)
                masked.append((slice(sure * run + at, sure * run + end), same))
            at = end
        classes: tuple[slice, Tensor, Tensor] | None = None
        slash = self.index.slash
        if slash is not None and crossing is not None and bool((self.residues[b, h, t] > 1).any()):
            stride, delta = slash[b, h].long()[..., None].unbind(1)  # where there is one class, all rows see its keys
            stride, theirs = stride.clamp_min(1), position[:, at - crossing.shape[1] :]
            where = slice(sure * run + at - theirs.shape[1], sure * run + at)
            classes = (where, (rows.place - delta) % stride, theirs % stride)
        whole = (starts[:, :sure, None] + within).flatten(1)

        def at_key(s: tuple[int, ...]) -> Tensor:
            base = (b * s[0] + head * s[1])[:, None]
            return torch.cat((base + whole * s[2], base + key * s[2]), 1)

        at_k = at_key(self.k.stride())
        at_v = at_k if self.v.stride() == self.k.stride() else at_key(self.v.stride())
        return Kept(at_k, at_v, sure * run, position, bias, masked, classes)

    def _locate(self, b: Tensor, head: Tensor, slots: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return position of slots and of keys, FAR where there is none, and their keys, [G, n]."""
        if self.plain:
            position = slots if keys is None else torch.cat((slots, keys), 1)
            return position.where(position < self.slots, FAR), position.clamp_max(self.slots - 1)
        if self.index.k_order is not None:
            key = _pick(self.index.k_order, b, head, slots.clamp_max(self.slots - 1)).long()
            slots = key.where((slots < self.slots) & (key >= 0), FAR)
        key = slots if keys is None else torch.cat((slots, keys), 1)
        inside = key.clamp_max(self.k.shape[2] - 1)
        position = inside if self.keys.key_position is None else _pick(self.keys.key_position, b, head, inside)
        return position.where(key < self.k.shape[2], FAR), inside

    def _columns(self, b: Tensor, h: Tensor, t: Tensor) -> Tensor | None:
        if self.index.col_ptr is None or self.index.col_idx is None:
            return None
        return _entries(self.index.col_idx, self.index.col_ptr[b, h, t], self.columns[b, h, t])

    def _grid(self, b: Tensor, h: Tensor, t: Tensor) -> Tensor | None:
        if self.index.grid is None:
            return None
        stride, phase, _ = self.index.grid[b, h].long()[..., None].unbind(1)
        count = self.grids[b, h, t][:, None]
        n = torch.arange(int(count.max()), device=b.device)
        return torch.where(n < count, phase + (self.grid_from[b, h, t][:, None] + n) * stride, FAR)

    def _diagonals(self, b: Tensor, h: Tensor, t: Tensor) -> Tensor | None:
        """Return keys of slashes [G, n], those on the grid left out."""
        if self.index.slash is None or not (count := self.slashes[b, h, t]).any():
            return None
        slash = self.index.slash[b, h].long()
        wide = torch.zeros_like(h) if self.limit.shape[1] == 1 else h
        residues = self._residues(self.place[b, wide, t], self.limit[b, wide, t], slash[:, None])
        residues = residues[:, : int(self.residues[b, h, t].max())]
        n = torch.arange(int(count.max()), device=b.device)
        key = torch.where(n < count[:, None], n * slash[:, :1], FAR)[:, None] + residues[..., None]
        key = key.flatten(1).clamp_max(FAR)
        if self.index.grid is not None:
            stride, phase, on = self.index.grid[b, h].long()[..., None].unbind(1)
            key = key.masked_fill((on > 0) & (key >= phase) & ((key - phase) % stride.clamp_min(1) == 0), FAR)
        return key

    def _where(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return sample, table and tile."""
        each = self.index.covered * self.index.tiles
        return tiles // each, tiles // self.index.tiles % self.index.covered, tiles % self.index.tiles


def _rounded(x: Tensor) -> Tensor:
    """Round counts up to 1/8 of their power of two; up to 16 they stay as they are."""
    step = torch.exp2(x.clamp_min(8).double().log2().floor() - 3).long()
    return -(-x // step) * step


def _pick(table: Tensor, b: Tensor, h: Tensor, at: Tensor) -> Tensor:
    """Return [G, n]: entries `at` [G, n] of table [B, 1 | Hk, W]."""
    return table[b[:, None], h[:, None] if table.shape[1] > 1 else 0, at]


def _entries(values: Tensor, start: Tensor, count: Tensor) -> Tensor:
    """Return [G, n]: `count` values from `start` on, then FAR."""
    n = torch.arange(int(count.max()), device=start.device)
    at = (start[:, None] + n).clamp_max(len(values) - 1)
    return torch.where(n < count[:, None], values[at].long(), FAR)


def _leading(seen: Tensor) -> int:
    """Return how many leading columns of Bool[G, n] are true for all."""
    return int(seen.all(0).long().cumprod(0).sum())


def _alike(position: Tensor, limit: Tensor) -> bool:
    """Return whether all tiles have the same positions relative to their first row."""
    relative = position - limit[:, :1]
    return bool((relative == relative[0]).all())
