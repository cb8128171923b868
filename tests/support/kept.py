"""What launches keep, written out by plain logic, and what every builder must guarantee about its tables."""

from __future__ import annotations

from dataclasses import replace

import torch

from vlmopt.kernels.patterns import (
    AShape,
    Boundary2D,
    DensePattern,
    GridSparse,
    MinP,
    Prefill,
    QBoundary,
    Sampled,
    TriShape,
    VerticalSlash,
)

L = torch.tensor
SMALL = {"tile": 16, "run": 16}
PATTERNS = {
    "dense": DensePattern(tile=16, run=32),
    "a_shape": AShape(sink=16, local=40, **SMALL),
    "tri_shape": TriShape(sink=16, local=20, last=30, tile=32, run=16),
    "vertical_slash": VerticalSlash(vertical=30, slash=100, **SMALL),
    "min_p": MinP(tau=0.6, sink=20, **SMALL),
    "sampled": Sampled(recall=0.2, trial=8, **SMALL),
    "grid": GridSparse(strength=1.0, local=30, sink=20, vertical=30, slash=100, **SMALL),
    "grid_v": GridSparse(strength=1.0, local=30, diagonals=False, rows=True, vertical=30, slash=100, **SMALL),
    "q_boundary": QBoundary(vision=VerticalSlash(vertical=30, slash=100, **SMALL), **SMALL),
    "boundary_2d": Boundary2D(dense_below=0, vision_vision=GridSparse(strength=1.0, local=30, **SMALL), **SMALL),
}
SHAPES = {
    "plain": {},
    "chunk": {"rows": 77},
    "left": {"batch": 3, "k_start": L([0, 5, 130])},
    "right": {"batch": 3, "q_len": L([300, 1, 65]), "k_len": L([300, 1, 65])},
    "right_chunk": {"batch": 2, "rows": 100, "q_len": L([100, 37]), "k_len": L([300, 137])},
    "heads": {"heads": L([1, 2])},
}


def prefill(batch=1, heads=4, key_heads=2, rows=None, width=300, dim=16, seed=0, **more):
    """Noise; `rows` of the last of `width` tokens."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, rows or width, dim, generator=g)
    k = torch.randn(batch, key_heads, width, dim, generator=g)
    given = {"scale": dim**-0.5, "heads": torch.arange(heads), **more}
    return Prefill(q=q, k=k, v=k, **given)


def shaped(name, **more):
    given = {**SHAPES[name], **more}
    heads = given.pop("heads", None)
    p = prefill(**given)
    modality = (torch.rand(p.batch, p.width, generator=torch.Generator().manual_seed(3)) < 0.7).long()
    return replace(p, modality=modality, heads=p.heads if heads is None else heads)


def visible(p):
    """Bool[B, 1, Sq, W]: what dense causal attention sees."""
    key = torch.arange(p.width)
    start = p.key_first[:, None, None]
    return ((key >= start) & (key <= p.position[..., None]) & p.real[..., None])[:, None]


def seen(p, launches):
    """Int[B, Hq, Sq, W]: how often each row sees each key; more than once would be counted twice by the softmax."""
    total = torch.zeros(p.batch, p.q.shape[1], p.rows, p.width, dtype=torch.int)
    for launch in launches:
        index = launch.index
        heads = torch.arange(p.q.shape[1]) if index.heads is None else index.heads
        shared = len(heads) // index.run_ptr.shape[1]
        row = torch.arange(p.rows)
        limit = row // launch.row_step * launch.row_step + p.offset[:, None] - launch.causal_shift
        low = torch.as_tensor(launch.key_min).expand(p.batch).maximum(p.key_first)
        for b in range(p.batch):
            for n, h in enumerate(heads.tolist()):
                for rows, keys in tiles(p, index, b, n // shared):
                    hit = keys.expand(len(rows), -1) | diagonals(p, index, b, n // shared, rows)
                    key = torch.arange(p.width)
                    total[b, h, rows] += (hit & (key >= low[b]) & (key <= limit[b, rows, None])).int()
    return total * p.real[:, None, :, None]


def tiles(p, index, b, h):
    """(rows, Bool[W]: keys of its lists) of every tile with rows."""
    order = torch.arange(p.rows) if index.q_order is None else index.q_order[b, h % index.q_order.shape[1]].long()
    slots = torch.arange(p.width) if index.k_order is None else index.k_order[b, 0].long()
    for t in range(index.run_ptr.shape[2] - 1):
        rows = order[t * index.tile : (t + 1) * index.tile]
        rows = rows[rows >= 0]
        named = [s + torch.arange(index.run) for s in part(index.run_ptr, index.run_start, b, h, t)]
        if index.col_ptr is not None:
            named.append(part(index.col_ptr, index.col_idx, b, h, t))
        if index.grid is not None and index.grid[b, h, 2]:
            named.append(torch.arange(int(index.grid[b, h, 1]), len(slots), int(index.grid[b, h, 0])))
        keys = torch.zeros(p.width + 1, dtype=torch.bool)
        if named:
            named = torch.cat(named).long()
            assert len(named.unique()) == len(named), "a slot is named twice in one tile"
            keys[slots[named[named < len(slots)]]] = True  # -1: the last, which is cut off
        if len(rows):
            yield rows, keys[:-1]


def part(ptr, values, b, h, t):
    return values[ptr[b, h, t] : ptr[b, h, t + 1]]


def diagonals(p, index, b, h, rows):
    if index.slash is None or index.slash[b, h, 0] == 0:
        return torch.zeros(len(rows), p.width, dtype=torch.bool)
    stride, delta = index.slash[b, h].tolist()
    return (p.position[b, rows, None] - torch.arange(p.width) - delta) % stride == 0


def check(p, launches, diagonal=True):
    """Tables are sound; no row sees a key twice, or one it must not; every real row sees itself. Returns `seen`."""
    for launch in launches:
        index = launch.index
        slots = p.width if index.k_order is None else index.k_order.shape[-1]
        for ptr, values in ((index.run_ptr, index.run_start), (index.col_ptr, index.col_idx)):
            if ptr is not None:
                flat = torch.cat([ptr[..., :-1].flatten(), ptr.flatten()[-1:]])
                assert flat[0] == 0
                assert flat[-1] == len(values)
                assert bool((flat.diff() >= 0).all())
                assert torch.equal(ptr[..., 1:].flatten(), flat[1:])
                assert bool(((values >= 0) & (values < slots)).all())
        for b, h, t in torch.ones(index.run_full.shape).nonzero().tolist():
            starts, full = part(index.run_ptr, index.run_start, b, h, t), int(index.run_full[b, h, t])
            for some in (starts[:full], starts[full:]):
                assert bool((some.diff() >= index.run).all()), "runs overlap or are not in order"
            if index.col_ptr is not None:
                assert bool((part(index.col_ptr, index.col_idx, b, h, t).diff() > 0).all())
            check_full(p, launch, b, h, t, starts[:full])
    counts = seen(p, launches)
    assert int(counts.max()) <= 1, "a key is counted twice"
    assert not bool((counts.bool() & ~visible(p)).any())
    if diagonal:
        own = counts.gather(-1, p.position.clamp_min(0)[:, None, :, None].expand(-1, counts.shape[1], -1, 1))
        assert bool((own[..., 0].bool() | ~p.real[:, None])[:, p.heads].all()), "a row does not see itself"
    return counts.bool()


def check_full(p, launch, b, h, t, starts):
    """Every real row of the tile may see all keys of its full runs."""
    index = launch.index
    order = torch.arange(p.rows) if index.q_order is None else index.q_order[b, h % index.q_order.shape[1]].long()
    rows = order[t * index.tile : (t + 1) * index.tile]
    rows = rows[rows >= 0]
    rows = rows[p.real[b, rows]]
    if len(starts) and len(rows):
        slots = torch.arange(p.width) if index.k_order is None else index.k_order[b, 0].long()
        keys = slots[(starts[:, None] + torch.arange(index.run)).flatten().long()]
        first = max(int(p.key_first[b]), int(torch.as_tensor(launch.key_min).flatten()[-1]))
        assert int(keys.min()) >= first
        assert int(keys.max()) <= int(p.position[b, rows].min()) - launch.causal_shift


def recall_of(p, kept):
    """Mean mass kept per head, share of the causal triangle, and the mass that as many random keys would hold."""
    weights = (p.q @ p.k.transpose(-1, -2) * p.scale).masked_fill(~visible(p), -torch.inf).softmax(-1)
    share = kept.sum((-1, -2)) / visible(p).sum((-1, -2))
    dice = torch.rand(weights.shape, generator=torch.Generator().manual_seed(0)) < share[..., None, None]
    return (weights * kept).sum(-1).mean(-1), share.mean(), (weights * dice).sum(-1).mean(-1)
