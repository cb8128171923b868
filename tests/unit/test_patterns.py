"""Patterns keep what they promise, in tables that a kernel may trust, for every shape of prefill."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.kept import PATTERNS, SHAPES, SMALL, L, check, prefill, seen, shaped, visible
from vlmopt.kernels.patterns import (
    AShape,
    Boundary2D,
    DensePattern,
    GridSparse,
    MinP,
    Prefill,
    QBoundary,
    TriShape,
    VerticalSlash,
    View,
    min_p,
    probe,
    registry,
    tables,
    vertical_slash,
)
from vlmopt.kernels.patterns.boundary import slots_of
from vlmopt.kernels.patterns.cover import cover
from vlmopt.kernels.patterns.probe import offset_mass, probe_lines, probe_rows


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PATTERNS)
def test_tables_are_sound_whatever_the_shape(name, shape):
    p = shaped(shape)
    kept = check(p, PATTERNS[name].build(p))
    outside = [h for h in range(p.q.shape[1]) if h not in p.heads.tolist()]
    assert not bool(kept[:, outside].any())


def test_every_name_is_registered():
    names = {"dense", "a_shape", "tri_shape", "vertical_slash", "grid", "q_boundary", "boundary_2d", "min_p"}
    assert names <= set(registry)
    assert all(registry[n].name == n for n in names)


@pytest.mark.parametrize("shape", SHAPES)
def test_dense_and_boundaries_of_dense_parts_keep_everything(shape):
    p = shaped(shape)
    dense = DensePattern(**SMALL)
    pairs = {f"{a}_{b}": dense for a in ("text", "vision") for b in ("text", "vision")}
    almost = {**pairs, "vision_text": AShape(sink=300, local=300, **SMALL)}  # everything too, but pair by pair
    for pattern in (dense, QBoundary(vision=dense, text=dense), Boundary2D(**pairs), Boundary2D(**almost)):
        kept = check(p, pattern.build(p))
        assert torch.equal(kept[:, p.heads], visible(p).expand(-1, len(p.heads), -1, -1))
    assert dense.is_identity
    assert QBoundary(vision=dense).is_identity
    assert Boundary2D(**pairs).is_identity
    assert not Boundary2D(**almost).is_identity


def test_a_shape_keeps_sink_and_window_rounded_up_to_blocks():
    p = shaped("left")
    kept = check(p, AShape(sink=20, local=40, **SMALL).build(p))
    i, j, first = p.position[:, None, :, None], torch.arange(p.width), p.key_first[:, None, None, None]
    low = (p.position // 16 * 16).maximum(p.key_first[:, None])[:, None, :, None]  # first real row of the tile
    block = j // 16 * 16
    expected = visible(p) & ((block < first + 20) | (block + 16 > low - 39))
    assert torch.equal(kept, expected.expand_as(kept))
    assert bool(kept[visible(p).expand_as(kept) & ((j < first + 20) | (i - j < 40)).expand_as(kept)].all())
    assert not bool(seen(p, AShape(sink=0, local=0, **SMALL).build(p)).any())


def test_tri_shape_adds_the_last_rows():
    p = shaped("right")
    kept, less = (check(p, c(sink=16, local=16, **SMALL).build(p)) for c in (TriShape, AShape))
    last = p.position >= (p.key_end - 128)[:, None]
    tiles = last.view(3, -1)[:, :288].unflatten(1, (-1, 16)).any(-1).repeat_interleave(16, 1)
    rows = torch.cat([tiles, last[:, 288:]], 1)[:, None, :, None] & visible(p)
    assert torch.equal(kept, less | rows)


def test_cover_needs_the_fewest_runs():
    g = torch.Generator().manual_seed(0)
    wanted = torch.rand(5, 200, generator=g) < torch.tensor([0.0, 0.02, 0.1, 0.5, 1.0])[:, None]
    starts = cover(wanted, 16)
    for row, given in zip(wanted, starts, strict=True):
        expected, end = [], 0
        for place in row.nonzero()[:, 0].tolist():
            if place >= end:
                expected.append(place)
                end = place + 16
        assert given.tolist() == expected + [200] * (len(given) - len(expected))


@pytest.mark.parametrize("shape", ["plain", "chunk", "left", "right_chunk"])
def test_probe_is_softmax_over_what_the_last_rows_see(shape):
    p = shaped(shape)
    logits = p.q.double() @ p.k.double().repeat_interleave(2, 1).transpose(-1, -2) * p.scale
    slots, limit = View(p).last(20)
    beyond_sink = torch.arange(p.width) >= p.key_first[:, None, None, None] + 4
    assert torch.allclose(probe_rows(p, rows=slots[:, -3:]), probe_rows(p, 20)[:, :, -3:], atol=1e-6)
    compare(p, probe_rows(p, 20), logits.masked_fill(~visible(p), -torch.inf), slots)
    weights = probe_rows(p, 20, sink=False)
    compare(p, weights, logits.masked_fill(~(visible(p) & beyond_sink), -torch.inf), slots)
    by_hand = torch.zeros(p.batch, 4, p.width)
    for b, r in (slots >= 0).nonzero().tolist():
        by_hand[b, :, : limit[b, r] + 1] += weights[b, :, r, : limit[b, r] + 1].flip(-1)
    for consecutive in (True, False):
        assert torch.allclose(offset_mass(weights, limit, consecutive), by_hand, atol=1e-6)
    verticals, slashes = probe_lines(View(p), 20)
    assert torch.allclose(verticals, weights.sum(-2), atol=1e-6)
    assert torch.allclose(slashes, by_hand, atol=1e-6)


def compare(p, weights, logits, slots):
    """The weights are the softmax of the last rows of the logits, by number and by name."""
    dense = logits.softmax(-1).nan_to_num(0)
    for b in range(p.batch):
        real = p.real[b].nonzero()[-20:, 0]
        assert slots[b][slots[b] >= 0].tolist() == real.tolist()
        assert torch.allclose(weights[b, :, -len(real) :].double(), dense[b, :, real], atol=1e-6)
        assert not bool(weights[b, :, : 20 - len(real)].any())


def test_vertical_slash_keeps_the_budget_it_names():
    p = shaped("plain")
    pattern = VerticalSlash(vertical=40, slash=110, **SMALL)
    verticals, slashes = probe_lines(View(p), 64)
    kept = check(p, pattern.build(p))
    i, j = p.position[0, :, None], torch.arange(p.width)
    for h in range(4):
        verticals[0, h, :16] = slashes[0, h, :100] = torch.inf
        single = verticals[0, h].topk(40).indices
        distance = slashes[0, h].topk(110).indices
        wanted = torch.isin(j, single).expand(300, -1) | torch.isin(i - j, distance)
        assert bool(kept[0, h][wanted & (j <= i)].all())
        run = wanted.clone()  # a run of 16 keys for 16 rows holds the slash, and 15 keys to either side
        for shift in range(1, 16):
            run[:, shift:] |= wanted[:, :-shift]
            run[:, :-shift] |= wanted[:, shift:]
        assert not bool((kept[0, h] & ~run).any())


@pytest.mark.parametrize("shape", ["plain", "chunk", "left"])
def test_slashes_of_scattered_rows_keep_their_distance_in_the_prompt(shape):
    p = shaped(shape)
    p = replace(p, modality=(torch.arange(p.width) % 50 < 37).long().expand(p.batch, -1))  # tiles with and without gap
    view = View(p, rows=slots_of(p, "q_boundary")[0][1], consecutive=False)
    pattern = VerticalSlash(vertical=30, slash=100, **SMALL)
    verticals, slashes = torch.zeros(2, p.batch, 4, p.width)
    distance = L([101, 130, 177, 220])
    slashes[:, torch.arange(4), distance] = 1.0
    kept = check(p, [replace(pattern, slash=101).launch(view, verticals, slashes)], diagonal=False)
    apart = p.position[:, None, :, None] - torch.arange(p.width)
    mine = visible(p) & (p.row_modality == 1)[:, None, :, None]
    assert bool(kept[mine & ((apart < 100) | (apart == distance[:, None, None]))].all())
    assert not bool((kept & ~mine).any())
    assert float(kept.sum()) < 0.8 * float(mine.sum()) * 4


def test_min_p_keeps_what_is_near_the_running_maximum():
    p = shaped("plain")
    kept = check(p, MinP(tau=0.6, sink=20, **SMALL).build(p))
    k = p.k.repeat_interleave(2, 1)
    for h in range(4):
        for t in (2, 9, 18):
            rows = slice(16 * t, min(16 * t + 16, 300))
            scores = k[0, h] @ p.q[0, h, rows].mean(0) * p.scale
            expected = torch.zeros(300, dtype=torch.bool)
            for group in range(0, 300, 256):
                best = -torch.inf
                for j in range(group, min(group + 256, 300), 16):
                    if j >= 32:  # behind the sink
                        best = max(best, float(scores[j : j + 16].max()))
                    expected[j : j + 16] = scores[j : j + 16] >= best + torch.tensor(0.6).log()
            expected[:32] = expected[16 * t : 16 * t + 16] = True
            i = torch.arange(300)[rows, None]
            assert torch.equal(kept[0, h, rows], expected & (torch.arange(300) <= i))


def test_less_is_kept_with_a_higher_tau():
    p = shaped("left")
    share = [seen(p, MinP(tau=tau, **SMALL).build(p)).float().mean() for tau in (1e-9, 0.5, 0.9, 1.0)]
    assert share[0] == visible(p).float().mean()
    assert share == sorted(share, reverse=True)
    assert share[3] < share[1]


@pytest.mark.parametrize("name", PATTERNS)
def test_right_padding_changes_nothing(name):
    batch = shaped("right", q_len=L([300, 1, 165]), k_len=L([300, 1, 165]))
    kept = seen(batch, PATTERNS[name].build(batch))
    for b, n in enumerate((300, 1, 165)):
        q, k, modality = batch.q[b : b + 1, :, :n], batch.k[b : b + 1, :, :n], batch.modality[b : b + 1, :n]
        alone = Prefill(q=q, k=k, v=k, scale=batch.scale, heads=batch.heads, modality=modality)
        assert torch.equal(kept[b : b + 1, :, :n, :n], seen(alone, PATTERNS[name].build(alone)))
        assert not bool(kept[b, :, n:].any())


@pytest.mark.parametrize("name", PATTERNS)
def test_a_head_chooses_for_itself(name):
    whole, some = shaped("plain"), shaped("heads")
    kept, part = (seen(p, PATTERNS[name].build(p)) for p in (whole, some))
    assert torch.equal(kept[:, [1, 2]], part[:, [1, 2]])


def test_settings_are_checked():
    with pytest.raises(ValueError, match="tile must be one of"):
        AShape(tile=48)
    with pytest.raises(ValueError, match="tau must be"):
        MinP(tau=1.5)
    with pytest.raises(TypeError, match="vision must be a pattern for parts of a prompt"):
        QBoundary(vision=QBoundary())
    with pytest.raises(ValueError, match="all off"):
        GridSparse(columns=False, diagonals=False)
    with pytest.raises(ValueError, match="modality of the tokens is not known"):
        QBoundary().build(prefill())


@pytest.mark.parametrize("name", ["vertical_slash", "min_p", "grid", "grid_v", "boundary_2d"])
def test_memory_is_bounded_without_a_difference(name, monkeypatch):
    p = shaped("left")
    whole = seen(p, PATTERNS[name].build(p))
    for module in (tables, vertical_slash, min_p, probe):
        monkeypatch.setattr(module, "ENTRIES", 1)
    assert torch.equal(whole, seen(p, PATTERNS[name].build(p)))
