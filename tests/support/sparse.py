"""Random indices that keep every promise, for tests of sparse attention."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import torch

from vlmopt.kernels.sparse_attention import AttentionInputs, Launch, SparseIndex, run_plan, sparse_attention
from vlmopt.kernels.sparse_attention.reference import Geometry, expand, on_slash, slot_keys, slot_rows

LAYOUTS = {
    "whole": {},
    "chunk": {"rows": 90, "width": 171},
    "right": {"q_len": torch.tensor([150, 37]), "k_len": torch.tensor([150, 37])},
    "right, chunk": {"rows": 90, "width": 171, "q_len": torch.tensor([90, 33]), "k_len": torch.tensor([171, 60])},
    "left": {"k_start": torch.tensor([0, 71])},
    "window left out": {"causal_shift": 20, "key_min": torch.tensor([5, 9]), "row_step": 32},
}


def tensors(layout=None, query_heads=4, key_heads=2, d=16, batch=2, seed=0, dtype=torch.float32):
    """q, k, v of a layout, and what to tell the attention about it."""
    given = dict(layout or {})
    rows = given.pop("rows", 150)
    width = given.pop("width", rows)
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, query_heads, rows, d, generator=generator).to(dtype) * 2
    k, v = torch.randn(2, batch, key_heads, width, d, generator=generator).to(dtype).unbind()
    return q, k, v, given


def inputs_of(q, k, v, *, scale=None, **given):
    return AttentionInputs(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, **given)


def call(q, k, v, index, *, causal_shift=0, key_min=0, row_step=1, **given):
    """Inputs and launch of loose arguments."""
    return inputs_of(q, k, v, **given), Launch(index, causal_shift, key_min, row_step)


def attend(q, k, v, index, *, return_lse=False, backend="auto", **given):
    """`sparse_attention` of loose arguments."""
    return sparse_attention(*call(q, k, v, index, **given), return_lse=return_lse, backend=backend)


def attend_plan(q, k, v, launches, *, return_lse=False, backend="auto", **given):
    """`run_plan` of loose arguments."""
    return run_plan(inputs_of(q, k, v, **given), launches, return_lse=return_lse, backend=backend)


def seen_by(q, k, index, **given):
    """Bool[B, H, Sq, W]: which keys each row sees."""
    return expand(*call(q, k, k, index, **given))


def csr(lists):
    """Offsets and values of nested lists [B][H][T] of numbers."""
    flat = [tile for sample in lists for head in sample for tile in head]
    ends = torch.tensor([0, *map(len, flat)]).cumsum(0)
    batch, heads, tiles = len(lists), len(lists[0]), len(lists[0][0])
    at = torch.arange(batch * heads).view(batch, heads, 1) * tiles + torch.arange(tiles + 1)
    return ends[at], torch.tensor(list(chain.from_iterable(flat)), dtype=torch.int32)


def permuted(lines, count, slots, generator):
    """Int[*lines, slots] of different numbers below `count`, -1 in between where they run out."""
    order = torch.full((*lines, slots), -1, dtype=torch.int32)
    for line in order.flatten(0, -2):
        some = torch.randperm(slots, generator=generator)[:count]
        line[some] = torch.randperm(count, generator=generator)[: len(some)].int()
    return order


def build(
    q, k, given, *, tile=32, run=16, share=0.4, aligned=False, columns=0.0, orders="", grid=None, slash=None,
    tables=None, heads=None, seed=0,
):  # fmt: skip
    """An index of random runs and columns. `orders`: "q" and "k" shuffle slots, "-" leaves rows and keys out."""
    generator = torch.Generator().manual_seed(seed)
    batch, tables = len(q), tables or (q.shape[1] if heads is None else len(heads))
    gap = 11 * ("-" in orders)
    q_order = permuted((batch, tables), q.shape[2], q.shape[2] - gap, generator) if "q" in orders else None
    k_order = permuted((batch, k.shape[1]), k.shape[2], k.shape[2] + gap, generator) if "k" in orders else None
    lines = {"grid": grid, "slash": slash}
    lines = {n: x and torch.tensor(x, dtype=torch.int32).expand(batch, tables, -1) for n, x in lines.items()}
    tiles = -(-(q.shape[2] if q_order is None else q_order.shape[2]) // tile)
    nothing = torch.zeros(batch, tables, tiles + 1, dtype=torch.long)
    index = SparseIndex(
        tile, run, nothing, torch.zeros(0).int(), nothing[..., 1:].int(), q_order=q_order, k_order=k_order, **lines,
        heads=None if heads is None else torch.tensor(heads),
    )  # fmt: skip
    shape = Geometry(*call(q, k, k, index, **given))
    listed = [[[([], 0, []) for _ in range(tiles)] for _ in range(tables)] for _ in range(batch)]
    for b in range(batch):
        for _, table, key_head in shape.heads():
            for t in range(tiles):
                listed[b][table][t] = some_keys(index, shape, b, table, key_head, t, share, aligned, columns, generator)
    parts = [[[[tile[i] for tile in head] for head in sample] for sample in listed] for i in range(3)]
    ptr, start = csr(parts[0])
    full = torch.tensor(parts[1], dtype=torch.int32)
    named = dict(zip(("col_ptr", "col_idx"), csr(parts[2]), strict=True)) if columns else {}
    return replace(index, run_ptr=ptr, run_start=start, run_full=full, **named)


def some_keys(index, shape, b, table, key_head, t, share, aligned, columns, generator):
    """Starts of runs, how many of them are full, and columns of one tile; nothing that grid or slash name already."""
    at, last, least = shape.positions(b)
    rows = slot_rows(index, b, table, shape.inputs.rows)[t * index.tile : (t + 1) * index.tile]
    rows = rows[rows >= 0]
    rows = rows[last[rows] >= 0]
    key = slot_keys(index, b, key_head, shape.inputs.width)
    place = shape.key_positions(b, key_head)[key].masked_fill(key < 0, shape.inputs.width)
    free = torch.ones(len(key), dtype=torch.bool)
    if index.grid is not None and index.grid[b, table, 2]:
        free[int(index.grid[b, table, 1]) :: int(index.grid[b, table, 0])] = False
    free &= ~on_slash(index, b, table, at[rows, None] - place).any(0)
    if float(torch.rand((), generator=generator)) < 0.1:
        return [], 0, []  # rows that see nothing
    starts, slot = [], 0 if aligned else int(torch.randint(index.run, (), generator=generator))
    while slot < len(key):
        if bool(free[slot : slot + index.run].all()) and float(torch.rand((), generator=generator)) < share:
            starts.append(slot)
        slot += index.run + (0 if aligned else int(torch.randint(9, (), generator=generator)))
    whole = {
        s: s + index.run <= len(key)
        and len(rows) > 0
        and bool((place[s : s + index.run] >= least).all() and (place[s : s + index.run] <= last[rows].min()).all())
        for s in starts
    }
    for s in starts:
        free[s : s + index.run] = False
    chosen = (free & (torch.rand(len(key), generator=generator) < columns)).nonzero()[:, 0].tolist()
    return sorted(starts, key=lambda s: not whole[s]), sum(whole.values()), chosen


def dense(q, k, tile=64, **given):
    """Every causal block, all of them masked."""
    shape = Geometry(*call(q, k, k, None, **given))
    lists = []
    for b in range(len(q)):
        ends = [int(last.max()) + 1 for last in shape.positions(b)[1].split(tile)]
        lists.append([[list(range(0, end, tile)) for end in ends]] * q.shape[1])
    ptr, start = csr(lists)
    return SparseIndex(tile, tile, ptr, start, torch.zeros(ptr.shape[0], ptr.shape[1], len(ends), dtype=torch.int32))


def padded(lengths, side):
    """q, k, v of samples padded to the longest, and what to tell the attention about it."""
    longest, lengths = max(lengths), torch.tensor(lengths)
    q, k, v, _ = tensors({"rows": longest}, batch=len(lengths))
    given = {"k_start": longest - lengths} if side == "left" else {"q_len": lengths, "k_len": lengths}
    return q, k, v, given
