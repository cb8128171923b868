"""On planted attention, patterns recall nearly all of the mass with few keys: more than as many keys at random."""

from __future__ import annotations

import pytest
import torch

from tests.support import planted
from tests.support.kept import L, check, recall_of, seen, visible
from tests.unit.test_patterns_grid import found, of
from vlmopt.kernels.patterns import (
    AShape,
    Boundary2D,
    DensePattern,
    GridSparse,
    Prefill,
    QBoundary,
    VerticalSlash,
    View,
)
from vlmopt.kernels.patterns.boundary import slots_of
from vlmopt.kernels.patterns.cover import slash_places
from vlmopt.kernels.patterns.probe import probe_lines


def test_planted_verticals_and_slashes_are_found():
    q, k = planted.noise(4, 2048, 64, seed=4)
    g = torch.Generator().manual_seed(5)
    single = torch.randint(100, 1800, (4, 6), generator=g)
    distance = torch.randint(200, 1800, (4,), generator=g)
    planted.columns(q, k, torch.zeros(4, 2048).scatter_(1, single, 1.0), gain=8)
    planted.slash(q, k, distance, seed=6)
    p = Prefill(q=q, k=k, v=k, scale=64**-0.5, heads=torch.arange(4))
    kept = check(p, VerticalSlash(vertical=70, slash=104).build(p))
    i = torch.arange(2048)
    for h in range(4):
        rows = i[i >= distance[h]]
        assert bool(kept[0, h, rows, rows - distance[h]].all())
        for j in single[h].tolist():
            assert bool(kept[0, h, j:, j].all())
    recall, density, random = recall_of(p, kept)
    assert recall.min() > 0.75
    assert density < 0.3
    assert bool((recall > random + 0.4).all())


def test_a_planted_grid_is_nearly_all_recalled_by_few_keys():
    q, k = planted.noise(2, 1536, seed=7)
    planted.v_grid(q, k, [49] * 2, [0, 48], gain=8)
    p = of(q, k)
    kept = check(p, GridSparse(diagonals=False, local=128).build(p))
    recall, density, random = recall_of(p, kept)
    oracle = planted_best(p, density)
    assert recall.min() > 0.95 * oracle.max()
    assert density < 0.3
    assert random.max() < 0.35


def planted_best(p, density):
    """Mass of the heaviest keys of each row, at the same density."""
    logits = (p.q @ p.k.transpose(-1, -2) * p.scale).masked_fill(~visible(p), -torch.inf)
    ordered = logits.softmax(-1).sort(-1, descending=True).values.cumsum(-1)
    most = (visible(p).sum(-1) * density).ceil().long().clamp_min(1)
    return ordered.gather(-1, (most - 1)[..., None].expand(1, logits.shape[1], -1, 1)).mean((-1, -2))


def test_timestamps_of_any_length_hide_the_period_from_positions_only():
    frame = 40
    modality = planted.timestamped(30, frame, seed=9)
    length = len(modality)
    number = modality.cumsum(0) - 1
    q, k = planted.noise(3, length, seed=9)
    vision = modality.bool()
    phase = L([0, 13, 39])
    planted.columns(q, k, vision & (number % frame == phase[:, None]), gain=7, rows=vision)
    p = of(q, k, modality=modality[None])
    by_position = found(p)
    assert float((by_position.strength[0] / by_position.stride).max()) < 0.3
    rows, keys = slots_of(p, "boundary_2d")
    grids = found(p, View(p, rows=rows[1], keys=keys[1]))
    assert grids.stride.tolist() == [[frame] * 3]
    assert grids.phase.tolist() == [phase.tolist()]
    assert float((grids.strength[0] / frame).min()) > 0.8
    dense = DensePattern()
    whole = Boundary2D(
        text_vision=dense, vision_text=AShape(sink=0, local=0), vision_vision=GridSparse(diagonals=False, local=64)
    )
    one = QBoundary(vision=GridSparse(diagonals=False, local=64, vertical=64, slash=100))
    recalls = [recall_of(p, check(p, pattern.build(p)))[:2] for pattern in (whole, one)]
    assert recalls[0][0].min() > 0.8
    assert recalls[0][0].min() > recalls[1][0].max() + 0.1
    assert recalls[0][1] < recalls[1][1]


@pytest.mark.parametrize("kind", ["noise", "window", "topics", "diagonals"])
def test_an_open_number_of_distances_is_bounded_by_the_prompt(kind):
    p = planted.structured(kind, heads=2, length=2048)
    view = View(p)
    lines = probe_lines(view, 64)
    cells = visible(p).sum()
    for pattern in (VerticalSlash(vertical=30), GridSparse(vertical=30)):
        kept = seen(p, pattern.build(p)).sum((0, 2, 3))
        assert bool((kept < 0.5 * cells).all())
    wanted = VerticalSlash().distances(view, lines[1])
    counts = wanted.sum(-1)[0].tolist()
    assert all(n in (100, 200, 400, 800, 1600) for n in counts)
    for h, n in enumerate(counts):
        assert torch.equal(wanted[0, h], VerticalSlash(slash=n).distances(view, lines[1])[0, h])
        places = int(slash_places(wanted, 64)[0, h].sum())
        assert places <= 2048 / 4 or n == 100
        assert int(slash_places(VerticalSlash(slash=2 * n).distances(view, lines[1]), 64)[0, h].sum()) > 2048 / 4
