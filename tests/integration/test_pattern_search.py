"""Offline search in one layer: planted structure gets its pattern at equal cost, and errors are those of what runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support import planted
from tests.support.prefills import layer
from vlmopt.kernels.patterns import AShape, Boundary2D, DensePattern, GridSparse, Prefill, VerticalSlash
from vlmopt.kernels.sparse_attention.index import Launch, SparseIndex
from vlmopt.search import candidates
from vlmopt.search.choice import best_of_each, composed, decide, pick, together
from vlmopt.search.layer import PARTS, LayerSearch
from vlmopt.search.timing import cells

L, F = torch.tensor, torch.float64
SMALL = {"tile": 16, "run": 16}
FEW = [AShape(sink=16, local=32, **SMALL), AShape(sink=0, local=16, **SMALL), DensePattern(**SMALL)]
FEW += [VerticalSlash(vertical=30, slash=100, probe=16, **SMALL), AShape(sink=0, local=0, **SMALL)]


def some(tokens, tile=64):
    """Every kind of candidate, but fewer budgets of each."""
    every = candidates(tokens, tile)
    lines = [c for c in every if isinstance(c, VerticalSlash)]
    grids = [c for c in every if isinstance(c, GridSparse) and c.stride == "search" and not c.rows]
    return [*every[:2], lines[0], lines[-1], *grids, *every[-2:]]


def one_head(q, k, head):
    return q[:, head : head + 1], k[:, head : head + 1]


def decided(search, given):
    found = search.measure(given)
    bests = best_of_each(found.errors, found.cells, found.shares)
    return found, bests, decide(bests[:1], given, found.cells[0, 0])


def test_planted_heads_get_their_pattern():
    """Repeating columns, repeating diagonals, single keys and a window, within the cost of the reference."""
    tokens, g = 2048, torch.Generator().manual_seed(1)
    q, k = planted.noise(4, tokens, 64)
    planted.v_grid(*one_head(q, k, 0), [48], [5], gain=10)
    planted.s_grid(*one_head(q, k, 1), [64], [7])
    keys = torch.zeros(1, tokens).scatter_(1, torch.randperm(tokens // 2, generator=g)[None, :20], 1.0)
    planted.columns(*one_head(q, k, 2), keys, gain=10)
    planted.local_window(*one_head(q, k, 3), L([30.0]), 4)
    prefill = Prefill(q, k, torch.randn(q.shape, generator=g), 0.125, heads=torch.arange(4))
    given = some(tokens)
    found, _, heads = decided(LayerSearch(prefill), given)
    assert [head.pattern.name for head in heads] == ["grid", "grid", "vertical_slash", "a_shape"]
    assert heads[0].pattern.columns
    assert heads[1].pattern.diagonals
    assert all(head.error < 0.05 for head in heads)
    assert all(head.ratio <= 1.1 for head in heads)
    reference = found.errors[0, 0]
    assert bool((reference[:3] > 0.3).all()), "the reference alone would do"


@pytest.fixture(scope="module")
def mixed():
    """A search over frames with texts between them and a long text at the end, three heads.

    Head 0 looks near. Head 1: text and vision rows look at keys of their own. Head 2: vision rows look one or more
    frames back, counted in vision tokens.
    """
    modality = torch.cat([planted.timestamped(20, 64, 0), torch.zeros(80).long()])
    vision, tokens, g = modality.bool(), len(modality), torch.Generator().manual_seed(1)
    q, k = planted.noise(3, tokens, 64)
    planted.local_window(*one_head(q, k, 0), L([30.0]), 4)
    for dim, rows in ((0, vision), (1, ~vision)):
        keys = torch.zeros(1, tokens).scatter_(1, torch.randperm(tokens // 2, generator=g)[None, :30], 1.0)
        planted.columns(*one_head(q, k, 1), keys, gain=9, dim=dim, rows=rows.float())
    number = vision.long().cumsum(0) - 1
    planted.s_grid(*one_head(q, k, 2), [64], [0], gain=14, at=number, keys=number, rows=vision)
    k[0, 2, ~vision, 1:33] = 0
    prefill = Prefill(q, k, torch.randn(q.shape, generator=g), 0.125, heads=torch.arange(3), modality=modality[None])
    search, given = LayerSearch(prefill), some(tokens, 32)
    return search, given, search.measure(given)


def test_boundaries_are_recovered(mixed):
    search, given, found = mixed
    bests = best_of_each(found.errors, found.cells, found.shares)
    bests[2] = replace(bests[2], error=search.composed(composed(bests[2], given)))
    heads = decide(bests, given, found.cells[0, 0])
    assert [head.pattern.name for head in heads] == ["a_shape", "q_boundary", "boundary_2d"]
    assert {heads[1].pattern.text.name, heads[1].pattern.vision.name} == {"vertical_slash"}
    assert heads[2].pattern.vision_vision.name == "grid"
    assert all(head.error < 0.05 and head.ratio <= 1.1 for head in heads)
    assert bool((bests[0].error[1:] > 0.3).all()), "no boundary is needed"


def test_errors_are_those_of_the_patterns_as_they_run(mixed):
    """Of a pattern per modality the sum of both parts; a composed one, and one for all rows, by plain tensors."""
    search, given, found = mixed
    by_rows = best_of_each(found.errors, found.cells, found.shares)[1]
    assert torch.allclose(search.composed(composed(by_rows, given)), by_rows.error, atol=1e-6)
    p = search.prefill
    dense = torch.nn.functional.scaled_dot_product_attention(p.q, p.k, p.v, is_causal=True, scale=p.scale)
    for n in (1, 3):
        out = search.run(given[n].build(p))
        gap = (out - dense).abs().sum((0, 2, 3)) / dense.abs().sum((0, 2, 3))
        assert torch.allclose(found.errors[0, n].float(), gap, atol=1e-4)
    text = p.modality[0] == 0
    share = dense[:, :, text].abs().sum((0, 2, 3)) / dense.abs().sum((0, 2, 3))
    assert torch.allclose(found.shares.float(), torch.stack([share, 1 - share]), atol=1e-4)
    nothing = given.index(AShape(sink=0, local=0, tile=32, run=32))
    assert bool(found.errors[:3, nothing].isinf().all()), "rows must read something"
    pair = PARTS.index("vision_text")
    plain = Boundary2D(text_text=DensePattern(), text_vision=DensePattern(), vision_text=given[nothing],
                       vision_vision=DensePattern())  # fmt: skip
    assert torch.allclose(found.errors[pair, nothing], search.composed([(plain, torch.arange(3))]), atol=1e-5)
    for rows, keys in (("text", "vision"), ("vision", "text"), ("vision", "vision")):
        one = replace(plain, vision_text=DensePattern())
        whole = search.composed([(replace(one, **{f"{rows}_{keys}": given[2]}), torch.arange(3))])
        assert torch.allclose(found.errors[PARTS.index(f"{rows}_{keys}"), 2], whole, atol=1e-5)


def test_grids_by_frames_are_measured_where_frames_are_known():
    """Elsewhere they search, too, and have the figures of those that do."""
    given = [FEW[2], *(GridSparse(stride=stride, vertical=30, slash=100, **SMALL) for stride in ("search", "frame"))]
    p = layer(rows=300, batch=1)
    found = LayerSearch(p).measure(given)
    assert torch.equal(found.errors[:, 1], found.errors[:, 2])
    assert found.seconds[1] == found.seconds[2]
    found = LayerSearch(replace(p, frame=30)).measure(given)
    assert found.seconds[1] != found.seconds[2]


def test_prompts_of_one_modality_have_no_boundaries():
    prefill = layer(rows=300, batch=1, modality=torch.ones(1, 300).long())
    found = LayerSearch(prefill).measure(FEW)
    assert not found.both
    for name in ("vision", "vision_vision"):
        assert torch.equal(found.errors[PARTS.index(name)], found.errors[0])
    assert not found.errors[PARTS.index("text")].any()


def test_the_cheapest_of_what_is_alike_and_within_the_budget():
    errors, costs = L([[0.100, 0.5], [0.103, 0.2], [0.0, 0.3]], dtype=F), L([[1.0, 1], [0.8, 1], [1.2, 0.5]], dtype=F)
    budget = L([1.1, 1.1], dtype=F)
    assert pick(errors, costs, budget).tolist() == [1, 1]
    assert pick(errors, costs, budget, L([0.1, 1], dtype=F)).tolist() == [0, 1], "little is at stake"
    best = together((errors, costs), (errors, costs), 2 * budget, L([0.0, 0.0], dtype=F))
    assert best.numbers.T.tolist() == [[0, 2], [1, 1]]
    assert best.error.tolist() == pytest.approx([0.1, 0.4])
    assert best.cost.tolist() == pytest.approx([2.2, 2])
    assert together((errors, costs), (errors, costs), budget / 2, errors[0]).error.isinf().all()


def test_cells_are_those_that_are_computed():
    prefill = layer(rows=300, batch=2, q_len=L([300, 200]), k_len=L([300, 200]))
    tiles = torch.zeros(2, 4, 19, dtype=torch.int)
    ptr = torch.zeros(2, 4, 20, dtype=torch.long)
    lines = {"grid": L([10, 3, 1]).int().expand(2, 4, 3), "slash": L([20, 0]).int().expand(2, 4, 2)}
    index = SparseIndex(16, 16, ptr, torch.zeros(0).int(), tiles, **lines)
    rows = 300 * 301 / 2 + 200 * 201 / 2
    assert cells(prefill, [Launch(index)]).tolist() == pytest.approx([rows * 0.15] * 4)
    some_rows = replace(index, q_order=torch.where(torch.arange(300) < 299, -1, 299).int().expand(2, 1, -1))
    prefill = layer(rows=300, batch=2, k_start=L([0, 100]))
    assert cells(prefill, [Launch(some_rows, causal_shift=50)]).tolist() == pytest.approx([(250 + 150) * 0.15] * 4)
    prefill = layer(rows=300, batch=2)
    dense = cells(prefill, DensePattern(**SMALL).build(prefill))
    assert dense.tolist() == [2 * 16 * 16 * sum(range(1, 20))] * 4
    two = replace(layer(rows=128, batch=1), heads=L([1, 3]))
    assert (cells(two, VerticalSlash(vertical=30, slash=100, **SMALL).build(two)) > 0).tolist() == [0, 1, 0, 1]


def test_budgets_shrink_with_the_prompt():
    long, short = candidates(100_000), candidates(2500)
    assert long[0] == AShape(sink=1024, local=4096)
    assert short[0] == AShape(sink=102, local=410)
    assert VerticalSlash(vertical=3500, slash=200) in long
    assert sum(isinstance(c, GridSparse) for c in long) == 14
    assert len(set(short)) == len(short)
    with pytest.raises(ValueError, match="tokens must be 1 or more"):
        candidates(0)
