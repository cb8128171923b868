"""Grid heads: the planted period is found, noise is none, and the launches keep exactly the lines that they name."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from tests.support import planted
from tests.support.kept import L, check, prefill, seen, visible
from vlmopt.kernels.patterns import (
    GridSparse,
    MinP,
    Prefill,
    VerticalSlash,
    View,
)
from vlmopt.kernels.patterns.boundary import slots_of
from vlmopt.kernels.patterns.grid_search import Grids
from vlmopt.kernels.patterns.probe import probe_lines

HEADS = 100
SMALL = {"tile": 16, "run": 16, "sink": 20, "local": 50}


def of(q, k, **more):
    return Prefill(q=q, k=k, v=k, scale=q.shape[-1] ** -0.5, heads=torch.arange(q.shape[1]), **more)


def found(p, view=None, **settings):
    pattern, view = GridSparse(**settings), view or View(p)
    return pattern.find(view, *probe_lines(view, pattern.probe))


def draws(seed, low=16, high=257):
    """A stride and a phase below it for each head."""
    g = torch.Generator().manual_seed(seed)
    stride = torch.randint(low, high, (HEADS,), generator=g)
    return stride, (torch.rand(HEADS, generator=g) * stride).long()


@pytest.mark.parametrize("seed", [11, 12])
def test_planted_columns_are_found_with_any_stride(seed):
    stride, phase = draws(seed)
    q, k = planted.noise(HEADS, 4096, seed=seed)
    planted.v_grid(q, k, stride, phase)
    grids = found(of(q, k))
    right = (grids.stride == stride) & (grids.phase == phase) & grids.columns & ~grids.diagonals
    assert int(right.sum()) >= 99


@pytest.mark.parametrize("seed", [13, 14])
def test_planted_diagonals_are_found_with_any_stride(seed):
    stride, delta = draws(seed, low=2 * planted.WAVES + 1)
    q, k = planted.noise(HEADS, 4096, seed=seed)
    planted.s_grid(q, k, stride, delta)
    grids = found(of(q, k))
    right = (grids.stride == stride) & (grids.delta == delta) & grids.diagonals & ~grids.columns
    assert int(right.sum()) >= 99


@pytest.mark.parametrize(("gain", "count"), [(8, 1), (10, 1), (8, 4), (10, 4)])
def test_a_sink_hides_no_diagonals_and_adds_no_columns(gain, count):
    """At a gain of 10 a key takes about three quarters of a row of noise."""
    stride, delta = draws(13, low=2 * planted.WAVES + 1)
    q, k = planted.noise(HEADS, 4096, seed=13)
    planted.s_grid(q, k, stride, delta)
    planted.columns(q, k, (torch.arange(4096) < count).float().expand(HEADS, -1), gain, dim=63)
    grids = found(of(q, k))
    right = (grids.stride == stride) & (grids.delta == delta) & grids.diagonals & ~grids.columns
    assert int(right.sum()) >= 99


def null(q, k):
    pass


def window(q, k):
    planted.local_window(q, k, torch.linspace(20, 900, HEADS), seed=1)


def verticals(q, k):
    g = torch.Generator().manual_seed(2)
    single = torch.randint(64, 3000, (HEADS, 3), generator=g)
    planted.columns(q, k, torch.zeros(HEADS, 4096).scatter_(1, single, 1.0), gain=9)


def sinks(q, k):
    planted.columns(q, k, (torch.arange(4096) < 4).float().expand(HEADS, -1), gain=12)


def segments(q, k):
    planted.topics(q, k, torch.arange(4096) // 300, seed=3)


@pytest.mark.parametrize("plant", [null, window, verticals, sinks, segments])
def test_what_has_no_period_is_no_grid(plant):
    q, k = planted.noise(HEADS, 4096, seed=21)
    plant(q, k)
    grids = found(of(q, k))
    assert int((grids.columns | grids.diagonals).sum()) <= 1


def test_a_few_heavy_keys_are_verticals_though_they_dwarf_an_even_spread():
    q, k = planted.noise(HEADS, 4096, seed=22)
    verticals(q, k)
    assert float(found(of(q, k)).strength[0].median()) > 20


def test_the_tokens_per_frame_are_tried_beyond_the_longest_stride():
    q, k = planted.noise(4, 16384, dim=32, seed=5)
    planted.v_grid(q, k, [1500] * 4, [3, 700, 0, 1499])
    assert found(of(q, k, frame=1500)).stride.tolist() == [[1500] * 4]
    assert found(of(q, k, frame=1500), stride="frame").phase.tolist() == [[3, 700, 0, 1499]]
    assert not bool(found(of(q, k, frame=1400), stride="frame").columns.any())


def test_no_stride_is_longer_than_the_prompt():
    q, k = planted.noise(2, 512, seed=3)
    planted.v_grid(q, k, torch.tensor([20, 31]), torch.tensor([3, 7]))
    default, endless = found(of(q, k)), found(of(q, k), max_stride=2**62)
    assert default.stride.tolist() == endless.stride.tolist() == [[20, 31]]


def by_definition(p, grids, columns, rows, diagonals, sink=20, local=50, tile=16):
    """The kept cells, written down from the meaning of the lines; the window starts with the tile's."""
    i, j = p.position[:, None, :, None], torch.arange(p.width)
    stride, phase, delta = (x[..., None, None] for x in (grids.stride, grids.phase, grids.delta))
    begin = (torch.arange(p.rows) // tile * tile + p.offset[:, None])[:, None, :, None] - local + 1
    keep = (j < p.key_first[:, None, None, None] + sink) | (j >= begin)
    keep = keep | ((j % stride == phase) & columns) | (((i - j) % stride == delta) & diagonals)
    return visible(p) & (keep | ((i % stride == phase) & rows))


def given(p, stride, phase, delta, **lines):
    """Grids that no search has found."""
    shape = (p.batch, len(p.heads))
    on = torch.ones(shape, dtype=torch.bool)
    spread = [torch.as_tensor(x).expand(shape) for x in (stride, phase, delta)]
    return Grids(*spread, on, on & lines["diagonals"], torch.zeros(2, *shape))


SHAPES = [
    {},
    {"rows": 233},
    {"batch": 2, "k_start": L([0, 70])},
    {"batch": 2, "rows": 333, "q_len": L([333, 150]), "k_len": L([400, 217])},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lines", [x for x in product((False, True), repeat=3) if any(x)])
def test_launches_keep_the_lines_and_nothing_twice(lines, shape):
    lines = dict(zip(("columns", "rows", "diagonals"), lines, strict=True))
    pattern = GridSparse(**SMALL, **lines)
    p = prefill(heads=3, key_heads=1, width=400, **shape)
    stride, phase, delta = L([17, 36, 64]), L([0, 35, 5]), L([16, 0, 40])
    grids = given(p, stride, phase, delta, **lines)
    kept = check(p, pattern.launches(View(p), grids))
    assert torch.equal(kept, by_definition(p, grids, **lines))


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_one_modality_keep_the_lines_of_the_whole_prompt(shape):
    lines = {"columns": True, "rows": True, "diagonals": True}
    p = with_modality(prefill(heads=3, key_heads=1, width=400, **shape))
    view = View(p, rows=slots_of(p, "q_boundary")[0][1], consecutive=False)
    grids = given(p, L([17, 36, 64]), L([0, 35, 5]), L([16, 0, 40]), **lines)
    kept = check(p, GridSparse(**SMALL, **lines).launches(view, grids), diagonal=False)
    assert torch.equal(kept, by_definition(p, grids, **lines) & (p.row_modality == 1)[:, None, :, None])


def with_modality(p):
    g = torch.Generator().manual_seed(8)
    return replace(p, modality=(torch.rand(p.batch, p.width, generator=g) < 0.7).long())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("diagonals", [False, True])
def test_pairs_count_in_running_numbers(shape, diagonals):
    lines = {"columns": True, "rows": False, "diagonals": diagonals}
    p = with_modality(prefill(heads=3, key_heads=1, width=400, **shape))
    rows, keys = slots_of(p, "boundary_2d")
    view = View(p, rows=rows[1], keys=keys[1])
    stride, phase, delta = L([17, 36, 64]), L([0, 35, 5]), L([16, 0, 40])
    grids = given(p, stride, phase, delta, **lines)
    kept = check(p, GridSparse(**SMALL, **lines).launches(view, grids), diagonal=False)
    number = (p.modality * (torch.arange(p.width) >= p.key_first[:, None])).cumsum(-1) - 1  # of every key
    i = number.gather(1, p.position.clamp_min(0))[:, None, :, None]
    j = number[:, None, None]
    stride, phase, delta = (x[:, None, None] for x in (stride, phase, delta))
    wanted = (j % stride == phase) | (((i - j) % stride == delta) & diagonals)
    pairs = visible(p) & (p.row_modality == 1)[:, None, :, None] & (p.modality == 1)[:, None, None]
    assert bool(kept[wanted & pairs].all())
    assert not bool((kept & ~pairs).any())
    near = p.position[:, None, :, None] - torch.arange(p.width) < 50 + 16
    extra = kept & ~wanted & ~near & (torch.arange(p.width) >= p.key_first[:, None, None, None] + 20)
    assert float(extra.sum() / kept.sum()) <= (0.35 if diagonals else 0)  # classes that share a tile


def test_heads_and_samples_without_a_grid_fall_back():
    q, k = planted.noise(6, 1024, seed=6, batch=2)
    stride = L([24, 32, 50])
    for b, h in ((0, slice(0, 3)), (1, slice(2, 5))):
        planted.v_grid(q[b : b + 1, h], k[b : b + 1, h], stride, [5, 0, 49], gain=8)
    p = of(q, k)
    pattern = GridSparse(vertical=64, slash=100, sink=64, local=128)
    on = found(p)
    assert on.columns.tolist() == [[True] * 3 + [False] * 3, [False] * 2 + [True] * 3 + [False]]
    kept = check(p, pattern.build(p))
    for b, h in ((0, 4), (1, 0), (0, 5), (1, 5)):
        alone = of(q[b : b + 1], k[b : b + 1])
        fallback = VerticalSlash(vertical=64, slash=100).build(alone)
        assert torch.equal(kept[b, h], seen(alone, fallback)[0, h].bool())
    grid = by_definition(p, on, True, False, on.diagonals[..., None, None], 64, 128, 64)
    for b, h in ((0, 0), (1, 2), (0, 2)):
        assert torch.equal(kept[b, h], grid[b, h])


def test_half_precision_and_transposed_views_find_the_same_grids():
    q, k = planted.noise(6, 4096, seed=10)
    stride, phase = L([64, 144, 196, 210, 257, 33]), L([0, 143, 7, 100, 256, 1])
    planted.v_grid(q, k, stride, phase)
    half = [x.bfloat16().transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k)]
    grids = found(of(*half))
    assert torch.equal(grids.stride[0], stride)
    assert torch.equal(grids.phase[0], phase)
    assert all(len(pattern.build(of(*half))) == 1 for pattern in (GridSparse(diagonals=False), VerticalSlash(), MinP()))
