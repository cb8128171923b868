"""Rows drawn at random that stand for a whole prefill: what they look at, and how much of that an index keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..sparse_attention.index import SparseIndex, tile_count
from .blocks import by_block, products
from .prefill import Prefill
from .probe import ENTRIES, offset_mass
from .tables import kept_keys
from .view import View

CHUNKS = 4  # of the drawn rows, so that few logits of the future are computed


@dataclass(frozen=True, eq=False)
class Draft:
    """What one drawn row of each tile looks at off the sink, as fp32 sums of its attention."""

    blocks: Tensor  # [B, H, T, N]: each tile's row by block of keys; 0 for a tile of padding
    verticals: Tensor  # [B, H, W]: all rows by key
    slashes: Tensor  # [B, H, W]: all rows by distance

    @classmethod
    def of(cls, prefill: Prefill, tile: int, run: int) -> Draft:
        """Draw a row of every tile of `tile` rows and look at it."""
        tiles, shape = tile_count(prefill.rows, tile), (prefill.batch, len(prefill.heads))
        start = torch.arange(tiles, device=prefill.device) * tile
        begin, end = real_rows(prefill)
        rows = torch.minimum(torch.maximum(start + (draw(tiles, prefill) * tile).long(), begin), end - 1)
        rows = rows.where((rows >= start) & (rows < start + tile), -1)
        sizes = ((tiles, tile_count(prefill.width, run)), (prefill.width,), (prefill.width,))
        made = cls(*(torch.zeros(*shape, *size, device=prefill.device, dtype=torch.float32) for size in sizes))
        for some, weights in looks(prefill, rows, tile):
            sums, keys, own = by_block(weights, run), weights.shape[-1], rows[:, some]
            position = prefill.position.gather(1, own.clamp_min(0)).where(own >= 0, -1)
            made.blocks[:, :, some, : sums.shape[-1]] = sums
            made.verticals[..., :keys] += weights.sum(2)
            made.slashes[..., :keys] += offset_mass(weights, position, consecutive=False)
        return made

    def lines(self, columns: int, distances: int) -> Tensor:
        """Return fp32 [H]: the most attention that any choice of so many columns and distances can hold."""
        best = [
            x.topk(min(n, x.shape[-1])).values.sum(-1)
            for x, n in ((self.verticals, columns), (self.slashes, distances))
        ]
        return ((best[0] + best[1]) / self.verticals.sum(-1).clamp_min(1e-30)).amin(0)


@dataclass(frozen=True, eq=False)
class Trial:
    """Other rows, evenly spread, with their attention off the sink: what proposals are tried on."""

    view: View  # of the rows' tiles, one after the other
    tiles: Tensor  # Long[B, R]: the tile of each row
    position: Tensor  # Long[B, R]
    weights: Tensor  # fp32 [B, H, R, W]; 0 for a row that sees nothing but the sink

    @classmethod
    def of(cls, prefill: Prefill, count: int, tile: int) -> Trial:
        """Draw one row of each of `count` equal parts of the real rows."""
        begin, end = real_rows(prefill)
        at = (torch.arange(count, device=prefill.device) + draw(count, prefill)) / count
        rows = torch.minimum(begin + (at * (end - begin)).long(), end - 1).clamp_min(0)
        weights = torch.zeros(
            prefill.batch, len(prefill.heads), count, prefill.width, device=prefill.device, dtype=torch.float32
        )
        for some, part in looks(prefill, rows, prefill.rows / count):
            weights[:, :, some, : part.shape[-1]] = part
        tiles = rows // tile
        members = (tiles[..., None] * tile + torch.arange(tile, device=prefill.device)).flatten(1)
        view = View(prefill, rows=members.where(members < prefill.rows, -1))  # consecutive inside every tile
        return cls(view, tiles, prefill.position.gather(1, rows), weights)

    def of_heads(self, heads: Tensor) -> Trial:
        """Return the trial of some heads, Long[H'], by their place among those of the prefill."""
        if len(heads) == self.weights.shape[1]:
            return self
        return Trial(self.view.on(self.view.prefill.heads[heads]), self.tiles, self.position, self.weights[:, heads])

    @cached_property
    def visible(self) -> Tensor:
        """Bool[B, 1, R, W]: every key that a row sees, the sink among them."""
        key, first = torch.arange(self.view.width, device=self.weights.device), self.view.prefill.key_first
        return ((key <= self.position[..., None]) & (key >= first[:, None, None]))[:, None]

    def best(self, share: float) -> Tensor:
        """Return fp32 [H]: an upper bound of the attention on any `share` of the keys that a row sees.

        Of n keys with weights w, that is sum max(w - c / n, 0) + c * share at most, whatever c.
        """
        seen = (self.position - self.view.prefill.key_first[:, None] + 1).clamp_min(1).float()[:, None]  # [B, 1, R]
        bounds = [self.mean((self.weights - (c / seen)[..., None]).relu_().sum(-1)) + c * share for c in (0.4, 0.8)]
        return torch.stack(bounds).amin((0, 1))

    def mean(self, share: Tensor) -> Tensor:
        """Return fp32 [B, H]: the mean of a share [B, H, R] over rows that see more than the sink."""
        return (share * self.real).sum(-1) / self.real.sum(-1).clamp_min(1)

    @cached_property
    def real(self) -> Tensor:
        """Bool[B, 1, R]: rows that see more than the sink."""
        return (self.position >= self.view.prefill.sink_end[:, None])[:, None]

    def held(self, share: Tensor) -> Tensor:
        """Return fp32 [H]: the mean of a share [B, H, R] less its standard error, of the sample with the least.

        A sample without a row that sees more than the sink has nothing to lose: 1.
        """
        mean, count = self.mean(share), self.real.sum(-1)
        error = (self.mean((share - mean[..., None]).square()) / count.clamp_min(1)).sqrt()
        return (mean - error).where(count > 0, 1).amin(0)

    def blocks(self, keep: Tensor, run: int) -> tuple[Tensor, Tensor]:
        """Return fp32 [H] each, what is held and the share of the cells, of blocks Bool[B, H, R, N] of the rows."""
        weights, cells = by_block(self.weights, run), by_block(self.visible, run)
        return self.held((weights * keep).sum(-1)), (keep * cells).sum((0, 2, 3)).float() / cells.sum()

    def index(self, index: SparseIndex) -> tuple[Tensor, Tensor]:
        """Return the same for an index of this view."""
        kept = kept_keys(index, self.view.width)
        cells = (kept & self.visible).sum((0, 2, 3)).float() / self.visible.sum()
        return self.held((self.weights * kept).sum(-1)), cells


def real_rows(prefill: Prefill) -> tuple[Tensor, Tensor]:
    """Return Long[B, 1] each: the first real row, and the one behind the last."""
    return (prefill.key_first - prefill.offset).clamp_min(0)[:, None], prefill.row_end[:, None]


def draw(count: int, prefill: Prefill) -> Tensor:
    """Return fp32 [count] in [0, 1): the same numbers for every layer and prompt."""
    return torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(prefill.device)


def looks(prefill: Prefill, rows: Tensor, span: float) -> Iterator[tuple[slice, Tensor]]:
    """Yield the attention off the sink of a few rows at a time: fp32 [B, H, r, keys] of all keys that they may see.

    Args:
        rows: Long[B, R], ascending, -1 for none (weights of 0); without padding row i lies left of (i + 1) * span.
    """
    view, count = View(prefill), rows.shape[1]
    position = torch.where(rows < 0, -1, prefill.position.gather(1, rows.clamp_min(0)))
    room = ENTRIES // (prefill.batch * len(prefill.heads) * prefill.width)
    step = max(1, min(room, -(-count // CHUNKS)))
    for some in (slice(start, min(start + step, count)) for start in range(0, count, step)):
        reach = prefill.width - prefill.rows + math.ceil(some.stop * span)
        keys = min(reach, prefill.width) if view.unpadded else prefill.width
        q = (view.q(rows[:, some]).float() * prefill.scale).to(prefill.k.dtype)
        logits = products(prefill, q, prefill.k[:, :, :keys]).float()
        if prefill.softcap is not None:
            logits = prefill.softcap * torch.tanh(logits / prefill.softcap)
        key, last = torch.arange(keys, device=q.device), position[:, None, some, None]
        hidden = (key > last) | (key < prefill.sink_end[:, None, None, None])
        blind = last < prefill.sink_end[:, None, None, None]
        yield some, logits.masked_fill_(hidden, torch.finfo(torch.float32).min).softmax(-1).masked_fill_(blind, 0)
