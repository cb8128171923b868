"""What block patterns share: visible blocks, means over blocks, and the rules that turn scores into blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..sparse_attention.index import tile_count
from .base import tile_span
from .prefill import SINKS, Prefill

SCORES = 2**27  # bytes of fp32 scores at a time, where they are finer than blocks


@dataclass(frozen=True, eq=False)
class BlockGrid:
    """The causal triangle in T tiles of rows by N blocks of keys; every mask is False for tiles of padding."""

    visible: Tensor  # Bool[B, 1, T, N]: some row of the tile sees some key of the block
    diagonal: Tensor  # Bool[B, 1, T, N]: the block holds a row of the tile itself
    first: Tensor  # Bool[B, 1, T, N]: the block holds a key of the sink

    @property
    def forced(self) -> Tensor:
        """Bool[B, 1, T, N]: the sink and the diagonal."""
        return self.first | self.diagonal


def block_grid(prefill: Prefill, tile: int, run: int) -> BlockGrid:
    """Lay out tiles of `tile` rows by blocks of `run` keys; both start at index 0, wherever real rows and keys do."""
    low, high = (edge[:, None, :, None] for edge in tile_span(prefill, tile))
    start = torch.arange(tile_count(prefill.width, run), device=prefill.device) * run
    begin, sink_end = (x[:, None, None, None] for x in (prefill.key_first, prefill.sink_end))
    visible = (start <= high) & (start + run > begin) & (low <= high)
    return BlockGrid(visible, visible & (start + run > low), visible & (start < sink_end))


def key_real(prefill: Prefill) -> Tensor:
    """Return Bool[B, W]: keys that are not padding."""
    key = torch.arange(prefill.width, device=prefill.device)
    return (key >= prefill.key_first[:, None]) & (key < prefill.key_end[:, None])


def beyond_sink(prefill: Prefill) -> Tensor:
    """Return Bool[B, W]: keys that are neither padding nor the sink."""
    key = torch.arange(prefill.width, device=prefill.device)
    return (key >= prefill.sink_end[:, None]) & (key < prefill.key_end[:, None])


def pool_rows(prefill: Prefill, tile: int) -> Tensor:
    """Return fp32 [B, H, T, D]: the mean of the real rows of each tile, 0 for a tile of padding."""
    q = prefill.q if prefill.all_heads else prefill.q[:, prefill.heads]
    return pool(q, padding_free(prefill, prefill.real), tile)


def pool_keys(prefill: Prefill, run: int) -> Tensor:
    """Return fp32 [B, Hk, N, D]: the mean of the real keys of each block, without the sink; 0 for an empty block."""
    means = pool(prefill.k, padding_free(prefill, beyond_sink(prefill)), run)
    if padding_free(prefill, prefill.real) is None:
        first = prefill.k[:, :, SINKS:run]  # none in a prompt that is all sink
        means[:, :, :1] = first.sum(2, keepdim=True, dtype=torch.float32) / max(first.shape[2], 1)
    return means


def padding_free(prefill: Prefill, real: Tensor) -> Tensor | None:
    """Return the mask; None where the prefill names no padding (decided without a look at the data)."""
    return None if prefill.q_len is prefill.k_len is prefill.k_start is None else real


def pool(x: Tensor, real: Tensor | None, size: int) -> Tensor:
    """Return fp32 [B, h, ceil(S / size), D]: means of `size` neighbours of x [B, h, S, D] among `real` Bool[B, S]."""
    if real is not None:
        x = x.masked_fill(~real[:, None, :, None], 0)
    whole = x.shape[2] // size * size
    sums: Tensor = x[:, :, :whole].unflatten(2, (-1, size)).sum(3, dtype=torch.float32)
    if whole < x.shape[2]:
        sums = torch.cat([sums, x[:, :, whole:].sum(2, keepdim=True, dtype=torch.float32)], 2)
    return sums / members(real, x.shape[2], size, x.device).clamp_min(1)[:, None, :, None]


def members(real: Tensor | None, width: int, size: int, device: torch.device) -> Tensor:
    """Return Long[B or 1, ceil(width / size)]: the number of real members of every block."""
    inside = torch.ones(1, width, dtype=torch.bool, device=device) if real is None else real
    counts: Tensor = pad(inside, (0, -width % size)).unflatten(1, (-1, size)).sum(2)
    return counts


def chunks(prefill: Prefill, tile: int, entries: int) -> Iterator[tuple[int, int, int]]:
    """Yield tiles start..stop with the number of keys that they can see, for scores of `entries` per tile and key.

    There are at least eight chunks, so that about half of the scores above the diagonal are never computed.
    """
    tiles = tile_count(prefill.rows, tile)
    step = max(1, min(SCORES // (4 * max(entries, 1) * prefill.width), -(-tiles // 8)))
    aligned = padding_free(prefill, prefill.real) is None
    for start in range(0, tiles, step):
        stop = min(start + step, tiles)
        last = prefill.width - prefill.rows + stop * tile
        yield start, stop, min(last, prefill.width) if aligned else prefill.width


def by_rank(scores: Tensor, count: int | Tensor, visible: Tensor, forced: Tensor) -> Tensor:
    """Return Bool[B, H, T, N]: the `count` best visible blocks, the forced ones among them.

    `count`: a whole number, or Long[B, H, T]. Forced blocks stay even beyond the count; ties go to the earlier block.
    """
    quota = torch.as_tensor(count, device=scores.device)[..., None]
    rank = torch.arange(scores.shape[-1], device=scores.device)
    order = ranked(scores.masked_fill(~visible, -torch.inf), forced)
    return spread(order, rank < quota) & visible | forced


def by_mass(share: Tensor, mass: float, visible: Tensor, forced: Tensor) -> Tensor:
    """Return Bool[B, H, T, N]: the forced blocks, then the heaviest, until they hold `mass` of the row's share.

    `mass` 1 keeps every visible block, also those whose share [B, H, T, N] underflowed.
    """
    if mass >= 1:
        return visible.expand_as(share)
    order, before = before_in_order(share, forced)
    return spread(order, before < mass * share.sum(-1, keepdim=True)) & visible | forced


def before_in_order(share: Tensor, forced: Tensor) -> tuple[Tensor, Tensor]:
    """Return blocks in order, forced first and then heaviest first, and the share before each (its own excluded)."""
    order = ranked(share, forced)
    held = share.gather(-1, order)
    return order, held.cumsum(-1) - held


def ranked(scores: Tensor, forced: Tensor) -> Tensor:
    return scores.masked_fill(forced, torch.inf).argsort(dim=-1, descending=True, stable=True)


def spread(order: Tensor, values: Tensor) -> Tensor:
    """Return `values`, given in `order`, at the places of their blocks."""
    return torch.empty_like(order, dtype=values.dtype).scatter_(-1, order, values.expand_as(order))


def by_block(values: Tensor, run: int) -> Tensor:
    """Sum values [..., W] over each block of `run` keys: [..., N]."""
    sums: Tensor = pad(values, (0, -values.shape[-1] % run)).unflatten(-1, (-1, run)).sum(-1)
    return sums


def products(prefill: Prefill, queries: Tensor, keys: Tensor) -> Tensor:
    """Multiply queries [B, H, r, D] of `prefill.heads` by keys [B, Hk, n, D], not repeated per group: [B, H, r, n]."""
    if not prefill.all_heads:
        keys = keys[:, prefill.key_heads]
    grouped: Tensor = queries.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)
    return (grouped @ keys.mT).view(*queries.shape[:3], keys.shape[2])
