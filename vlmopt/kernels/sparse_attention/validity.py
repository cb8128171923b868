"""Check whether an index keeps its promises: slow and loud, for tests and for authors of patterns."""

from __future__ import annotations

import torch
from torch import Tensor

from .index import Launch, SparseIndex
from .inputs import AttentionInputs
from .reference import Geometry, named_keys, on_slash, slot_keys, slot_rows


def check_index(inputs: AttentionInputs, launch: Launch) -> None:
    """Refuse an index that a back-end may trust wrongly. Loops over tiles.

    Raises:
        ValueError: offsets that descend or leave their table; rows, keys or runs that do not exist; columns out of
            order; rows or visible keys named twice (but for a key on both grid and slash); full runs that a row does
            not see whole.
    """
    inputs, index = inputs.of(launch), launch.index
    shape = Geometry(inputs, launch)
    _pointers("run_ptr", index.run_ptr, index.run_start)
    if index.col_ptr is not None and index.col_idx is not None:
        _pointers("col_ptr", index.col_ptr, index.col_idx)
    for name, order, count in (("q_order", index.q_order, inputs.rows), ("k_order", index.k_order, inputs.width)):
        if order is not None:
            _order(name, order, count)
    for b in range(index.batch):
        at, last, least = shape.positions(b)
        for _, table, key_head in shape.heads():
            position = shape.key_positions(b, key_head)
            for t, rows in enumerate(slot_rows(index, b, table, inputs.rows).split(index.tile)):
                rows = rows[rows >= 0]
                rows = rows[last[rows] >= 0]
                if len(rows):
                    _tile(index, b, table, key_head, t, inputs.width, position, at[rows], last[rows], least)


def _pointers(name: str, offsets: Tensor, values: Tensor) -> None:
    flat = offsets.flatten()
    if len(flat) and (bool((flat.diff() < 0).any()) or int(flat[0]) < 0 or int(flat[-1]) > len(values)):
        raise ValueError(f"{name} must ascend from 0 to {len(values)} at most, got {flat.tolist()}")


def _order(name: str, order: Tensor, count: int) -> None:
    for line in order.flatten(0, -2):
        named = line[line >= 0]
        if int(line.amin()) < -1 or int(line.amax()) >= count or len(named) != len(named.unique()):
            raise ValueError(f"{name} must name each of {count} at most once, -1 for none, got {line.tolist()}")


def _tile(
    index: SparseIndex, b: int, table: int, key_head: int, t: int, width: int, position: Tensor, at: Tensor,
    last: Tensor, least: int,
) -> None:  # fmt: skip
    where = f"tile {t} of table {table} of sample {b}"
    starts = index.run_start[index.run_ptr[b, table, t] : index.run_ptr[b, table, t + 1]]
    columns = starts[:0]
    if index.col_ptr is not None and index.col_idx is not None:
        columns = index.col_idx[index.col_ptr[b, table, t] : index.col_ptr[b, table, t + 1]]
    slots = slot_keys(index, b, key_head, width)
    for name, values in (("run_start", starts), ("col_idx", columns)):
        if len(values) and (int(values.amin()) < 0 or int(values.amax()) >= len(slots)):
            raise ValueError(f"{name} of {where} must lie in [0, {len(slots)}), got {values.tolist()}")
    if bool((columns.diff() <= 0).any()):
        raise ValueError(f"columns of {where} must ascend, got {columns.tolist()}")
    if bool((starts.sort().values.diff() < index.run).any()):
        raise ValueError(f"runs of {where} overlap: {starts.tolist()}, each {index.run} long")
    listed, lines = (
        keys[(keys >= 0) & (position[keys] >= least) & (position[keys] <= last.amax())]
        for keys in named_keys(index, b, table, key_head, t, width)
    )
    values, counts = torch.cat((listed, lines)).unique(return_counts=True)
    if bool((counts > 1).any()):
        raise ValueError(f"{where} names keys twice: {values[counts > 1].tolist()}")
    again = on_slash(index, b, table, at[:, None] - position[listed]) & (position[listed] <= last[:, None])
    if bool(again.any()):
        raise ValueError(f"slashes of {where} meet runs or columns at keys {listed[again.any(0)].tolist()}")
    full = int(index.run_full[b, table, t])
    if full > len(starts):
        raise ValueError(f"{where} has {len(starts)} runs, {full} of them full")
    inside = (starts[:full, None] + torch.arange(index.run)).flatten()
    whole = slots[inside[inside < len(slots)]]
    seen = (whole >= 0) & (position[whole] >= least) & (position[whole] <= last.amin())
    if len(whole) < len(inside) or not bool(seen.all()):
        raise ValueError(f"{where} calls {full} runs full, but some row does not see all of {starts[:full].tolist()}")
