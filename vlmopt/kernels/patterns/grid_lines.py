"""The launches of grid heads: sink and window by tiles of neighbours, lines class by class, whole rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..sparse_attention.index import Launch, tile_count
from .grid_search import LEAST_STRIDE, Grids
from .tables import Columns, by_tiles, csr, runs
from .view import View, tiled


def near(view: View, grids: Grids, *, columns: bool, tile: int, run: int, sink: int, local: int) -> Launch:
    """Return sink and window, and with `columns` the repeating columns between them.

    Rows stay in tiles of neighbours, those outside the view left empty, so the window of a tile is one stretch from
    `local` - 1 before its first row on. Rows that keep every key are left out.
    """
    prefill = view.prefill
    natural, member = in_place(view)
    low, high = natural.span(tile)
    high = torch.where(tiled(member, tile, False).any(-1), high, -1)[:, None, :, None]
    edge = torch.arange(low.shape[1], device=low.device) * tile + prefill.offset[:, None] - local + 1
    start = torch.maximum(natural.below(edge), natural.first[:, None])[:, None, :, None]
    begin = start + torch.arange(0, local + tile + run, run, device=low.device)
    heads = (-1, len(prefill.heads), -1, -1)
    table = runs((begin <= high).expand(heads), begin, begin + run - 1 <= low[:, None, :, None], full_first=True)

    sink_end = natural.below(prefill.key_first[:, None] + sink)[:, :, None, None]
    values = (natural.first[:, None] + torch.arange(sink, device=low.device))[:, None, None].expand(heads)
    wanted = values < sink_end
    if columns:
        count = torch.arange(view.width // LEAST_STRIDE + 1, device=low.device)
        line = (grids.phase[..., None] + grids.stride[..., None] * count)[:, :, None]
        wanted = torch.cat([wanted, (line >= sink_end) & grids.columns[..., None, None]], -1)
        values = torch.cat([values, line], -1)
    end = torch.where(high < 0, 0, start)
    singles = by_tiles(low.shape[1], values.numel(), lambda some: csr(wanted & (values < end[:, :, some]), values))

    order = torch.arange(prefill.rows, device=low.device).where(member, -1)[:, None]
    if grids.whole is not None:
        order = order.where(~on_line(natural, grids, grids.whole), -1)
    in_order = view.rows is None and grids.whole is None
    return Launch(view.index(tile, run, table, singles, q_order=None if in_order else order.int()))


def lines(view: View, grids: Grids, *, tile: int, run: int, sink: int, local: int) -> Launch:
    """Return repeating columns and diagonals, for rows class by class of their limit modulo the stride.

    Class `phase` comes last. Only keys after the sink and before the window that `near` gives the row: the window of a
    whole tile begins at the same key, hence `row_step`. Rows that keep every key are left out, as are heads without
    lines.
    """
    prefill = view.prefill
    stride, phase = grids.stride[..., None], grids.phase[..., None]
    rank = (view.limit[:, None] - phase - 1) % stride  # [B, H, S']
    chosen = view.real[:, None] & (grids.columns | grids.diagonals)[..., None]
    if grids.whole is not None:
        chosen = chosen & ~on_line(view, grids, grids.whole)
    order = rank * view.slots + torch.arange(view.slots, device=rank.device)
    order = order.where(chosen, torch.iinfo(order.dtype).max).argsort(-1)
    chosen, rank = chosen.gather(-1, order), rank.gather(-1, order)
    rows = order if view.rows is None else view.rows[:, None].expand(order.shape).gather(-1, order)

    empty = rank.new_zeros(*rank.shape[:2], tile_count(view.slots, tile) + 1)
    extra: dict[str, Any] = {"q_order": rows.where(chosen, -1).int()}
    singles = None
    if view.keys is None:
        extra["grid"] = torch.stack([grids.stride, grids.phase, grids.columns], -1).int()
        extra["slash"] = torch.stack([grids.stride * grids.diagonals, grids.delta], -1).int()
    else:  # distances between running numbers are none between positions: a table
        limit = tiled(view.limit[:, None].expand(rank.shape).gather(-1, order).where(chosen, -1), tile, -1).amax(-1)
        least = tiled(rank.where(chosen, view.width), tile, view.width).amin(-1)
        singles = line_columns(view, grids, least, tiled(rank.where(chosen, -1), tile, -1).amax(-1), limit, sink)
    index = view.index(tile, run, (empty, empty.new_zeros(0).int(), empty[..., 1:].int()), singles, **extra)
    first = sink if prefill.k_start is None else prefill.key_first + sink
    return Launch(index, causal_shift=local, key_min=first, row_step=tile)


def line_columns(view: View, grids: Grids, least: Tensor, most: Tensor, limit: Tensor, sink: int) -> Columns:
    """Return offsets and slots of the line keys of tiles whose rows have classes least..most and limits up to `limit`.

    All Long[B, H, T]. A tile across two classes keeps the diagonals of both for all its rows.
    """
    slot = torch.arange(view.width, device=limit.device)
    stride, phase = grids.stride[..., None], grids.phase[..., None]
    rank = ((slot + grids.delta[..., None] - phase - 1) % stride)[:, :, None]  # class of the rows that it is for
    column = ((slot % stride == phase) & grids.columns[..., None])[:, :, None]
    diagonal = grids.diagonals[..., None, None]
    beyond = slot >= view.below(view.prefill.key_first[:, None] + sink)[:, :, None, None]

    def single(some: slice) -> tuple[Tensor, Tensor]:
        low, high, last = (x[:, :, some, None] for x in (least, most, limit))
        return csr((column | (diagonal & (rank >= low) & (rank <= high))) & beyond & (slot <= last))

    return by_tiles(limit.shape[-1], rank.numel(), single)


def full_rows(view: View, grids: Grids, whole: Tensor, *, tile: int, run: int) -> Launch:
    """Return every key for the rows on the line, at most a sixteenth of all; as many slots as the fullest head has."""
    chosen = on_line(view, grids, whole) & view.real[:, None]
    slots = int(chosen.sum(-1).amax().clamp_min(1))
    order = torch.arange(view.slots, device=chosen.device).where(chosen, view.slots).sort(-1).values[..., :slots]
    chosen, order = order < view.slots, order.clamp_max(view.slots - 1)
    limit = view.limit[:, None].expand(-1, order.shape[1], -1).gather(-1, order)
    low = tiled(limit.where(chosen, view.width), tile, view.width).amin(-1)[..., None]
    high = tiled(limit.where(chosen, -1), tile, -1).amax(-1)[..., None]
    start, first = torch.arange(0, view.width, run, device=low.device), view.first[:, None, None, None]
    keep = (start <= high) & (start + run > first)
    table = runs(keep, start, (start + run - 1 <= low) & (start >= first), full_first=view.prefill.k_start is None)
    rows = order if view.rows is None else view.rows[:, None].expand(-1, order.shape[1], -1).gather(-1, order)
    return Launch(view.index(tile, run, table, q_order=rows.where(chosen, -1).int()))


def on_line(view: View, grids: Grids, whole: Tensor) -> Tensor:
    """Return Bool[B, H, S']: rows that keep every key, in the heads `whole` Bool[B, H]."""
    return (view.limit[:, None] % grids.stride[..., None] == grids.phase[..., None]) & whole[..., None]


def in_place(view: View) -> tuple[View, Tensor]:
    """Return the view with all rows at their own places, and Bool[B, Sq]: which of them it has."""
    natural = View(view.prefill, keys=view.keys)
    if view.rows is None:
        return natural, natural.real
    member = torch.zeros(*view.rows.shape[:1], view.prefill.rows + 1, dtype=torch.bool, device=view.rows.device)
    return natural, member.scatter_(1, view.rows.where(view.real, view.prefill.rows), True)[:, :-1]
