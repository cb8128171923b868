"""Methods that cut inside the LLM, in several layers: PyramidDrop, and SparseVLM with its merged tokens."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.support.visual import visual
from vlmopt.pruning import (
    TEXT,
    AttentionRows,
    FastV,
    HiddenStates,
    LookAheadRows,
    TextEmbeds,
    VisualEmbeds,
    VisualTokens,
)
from vlmopt.pruning.cluster import density_peaks
from vlmopt.pruning.pyramid_drop import PyramidDrop
from vlmopt.pruning.sparse_vlm import SparseVLM, raters, recycled, room


def with_signals(method, grids=((1, 24, 24),), heads=4, words=6, width=8, seed=0) -> VisualTokens:
    """Random tokens with what `method` needs."""
    generator = torch.Generator().manual_seed(seed)
    tokens = visual(list(grids))
    shapes = {VisualEmbeds: (len(tokens), width), TextEmbeds: (words, width), HiddenStates: (len(tokens), width)}
    signals = {}
    for need in method.needs:
        rows = words if getattr(need, "rows", 1) == TEXT else 1
        shape = shapes.get(type(need), (heads, rows, len(tokens)))
        signals[need] = torch.rand(shape, generator=generator)
    return dataclasses.replace(tokens, signals=signals)


def layer_average(method, total=576, layers=32) -> float:
    """Visual tokens per layer of the LLM."""
    counts = [total] * layers
    for stage in method.stages:
        counts[stage.layer :] = [stage.budget(total)] * (layers - stage.layer)
    return sum(counts) / layers


def left(method, total=576) -> list[int]:
    return [stage.budget(total) for stage in method.stages]


def test_layer_averages():
    assert layer_average(PyramidDrop(keep_ratio=0.125)) == 270
    pyramid = PyramidDrop(layers=(2, 10, 20), ratios=(0.32, 0.16, 0.08))
    assert layer_average(pyramid) == pytest.approx(128.2, abs=0.2)  # 128.16 before counts are rounded
    assert layer_average(FastV(keep_tokens=128, layer=2)) == 156
    assert layer_average(SparseVLM(keep_ratio=110 / 576, layers=(2, 6, 16))) == 191  # the cuts as the paper counts them
    assert layer_average(SparseVLM(keep_ratio=110 / 576)) == 202.75  # the cuts after layers 2, 6, 15, counted from 0


def test_pyramid_drop_halves_at_every_stage():
    method = PyramidDrop(keep_ratio=0.125, positions="pospad", padding="square", allocation="equal", segment="frame")
    assert [stage.layer for stage in method.stages] == [8, 16, 24]
    assert left(method) == [288, 144, 72]
    assert method.layer == 8
    for stage in method.stages:
        assert stage.needs == {LookAheadRows(stage.layer, 1)}
        assert stage.stages == (stage,)
        assert (stage.name, stage.positions, stage.padding) == ("pyramid_drop", "pospad", "square")
        assert (stage.allocation, stage.segment) == ("equal", "frame")
        assert not stage.is_identity
    assert left(PyramidDrop(keep_ratio=0.2, layers=(3,))) == [115]
    assert all(stage.is_identity for stage in PyramidDrop(keep_ratio=1.0).stages)


def test_pyramid_drop_truncates_as_released():
    assert left(PyramidDrop(keep_ratio=0.125), 27) == [14, 7, 3]
    assert left(PyramidDrop(keep_ratio=0.125, paper_compat=True), 27) == [13, 6, 3]
    assert left(PyramidDrop(keep_ratio=0.125, paper_compat=True)) == [288, 144, 72]
    assert left(PyramidDrop(keep_ratio=0.01, paper_compat=True), 30) == [6, 1, 1]


def test_pyramid_drop_stages_are_nested_and_follow_their_own_rows():
    method = PyramidDrop(keep_ratio=0.125, layers=(1, 2, 3))
    tokens, index = visual([(1, 8, 8)]), torch.arange(64)
    for seed, stage in enumerate(method.stages):
        row = torch.rand(2, 1, 64, generator=torch.Generator().manual_seed(seed))
        tokens = dataclasses.replace(
            visual([(1, 8, 8)], keep=index), signals={LookAheadRows(stage.layer): row[..., index]}
        )
        keep = stage.select(tokens).keep
        best = row.mean((0, 1))[index].topk(stage.budget(64)).indices.sort().values
        assert torch.equal(keep, best)
        index = index[keep]
    assert len(index) == 8


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"keep_tokens": 5}, "keep_tokens=5.*keep_ratio"),
        ({"keep_ratio": 0.5, "layers": ()}, "one or more"),
        ({"keep_ratio": 0.5, "layers": (3, 3)}, "rising"),
        ({"keep_ratio": 0.5, "layers": (4, 2)}, "rising"),
        ({"keep_ratio": 0.5, "layers": (0, 2)}, "layers.*>= 1"),
        ({"ratios": (0.5, 0.25)}, "3 numbers"),
        ({"ratios": (0.5, 0.25, 0.3)}, "never grow"),
        ({"ratios": (0.5, 0.25, 0.0)}, "ratios.*> 0"),
        ({"ratios": (0.5, 0.25, 0.1), "keep_ratio": 0.2}, "end with keep_ratio=0.2"),
        ({}, "exactly one"),
    ],
    ids=str,
)
@pytest.mark.parametrize("cls", [PyramidDrop, SparseVLM])
def test_settings_of_progressive_methods(cls, settings, match):
    with pytest.raises(ValueError, match=match):
        cls(**settings)
    with pytest.raises(TypeError, match="layer"):
        cls(keep_ratio=0.5, layer=3)
    with pytest.raises(TypeError, match="ratios"):
        cls(ratios=0.5)


@pytest.mark.parametrize(
    ("ratio", "want"),
    [
        (110 / 576, [300, 200, 110]),
        (36 / 576, [303, 110, 36]),
        (26 / 576, [238, 48, 26]),
        (17 / 576, [66, 30, 17]),
        (1.0, [576, 576, 576]),
    ],
)
def test_sparse_vlm_follows_the_published_tables(ratio, want):
    assert left(SparseVLM(keep_ratio=ratio)) == want
    assert left(SparseVLM(keep_ratio=ratio), 5760) == [10 * count for count in want]


def test_sparse_vlm_between_the_tables():
    for i in range(1, 200):
        ratios = [stage.keep_ratio for stage in SparseVLM(keep_ratio=i / 200).stages]
        assert 1 >= ratios[0] >= ratios[1] >= ratios[2] == i / 200
    between = [stage.keep_ratio for stage in SparseVLM(keep_ratio=(26 * 36) ** 0.5 / 576).stages]
    assert between[1] == pytest.approx((48 * 110) ** 0.5 / 576)
    assert left(SparseVLM(ratios=(0.5, 0.4, 0.1)), 100) == [50, 40, 10]
    assert left(SparseVLM(keep_ratio=0.25, layers=(2, 4)), 100) == [50, 25]


def test_raters_are_the_words_that_match_the_image():
    things = torch.eye(5)
    image = 4 * things[[0, 0, 2, 2, 2, 0]]
    question = torch.stack([things[3], things[0], things[4], things[2], things[3]])
    assert raters(image, question).tolist() == [False, True, False, True, False]
    assert raters(image, question[[0, 0, 0]]).all()  # none stands out
    assert raters(image, question[:1]).all()


def test_sparse_vlm_asks_the_raters_alone():
    method = SparseVLM(keep_ratio=0.5, layers=(3,), recycle=False)
    assert method.needs == {VisualEmbeds(), TextEmbeds(), AttentionRows(2, TEXT)}
    tokens = with_signals(method, [(1, 2, 3)], heads=2, words=3, width=4)
    things, rows = torch.eye(4), torch.zeros(2, 3, 6)
    rows[:, 0], rows[:, 2] = torch.tensor([9.0, 9, 9, 9, 0, 0]), torch.tensor([9.0, 0, 9, 0, 9, 0])  # no raters
    rows[0, 1], rows[1, 1] = torch.tensor([0.0, 0, 0, 0.1, 0.1, 0.3]), torch.tensor([0.0, 0, 0, 0.1, 0.2, 0.1])
    signals = {VisualEmbeds(): 5 * things[[1] * 6], TextEmbeds(): things[:3], AttentionRows(2, TEXT): rows}
    tokens = dataclasses.replace(tokens, signals=signals)
    selection = method.select(tokens)
    assert selection.keep.tolist() == [3, 4, 5]
    assert torch.allclose(selection.scores, torch.tensor([0, 0, 0, 0.1, 0.15, 0.2]))
    one = dataclasses.replace(method, heads=1)  # head 0 looks at the image most, by its rater's row
    assert torch.allclose(one.score(tokens), rows[0, 1])
    assert torch.allclose(dataclasses.replace(method, heads=9).score(tokens), selection.scores)


def test_sparse_vlm_without_recycling_takes_the_best_of_given_scores():
    method = SparseVLM(keep_ratio=0.25, layers=(3,), recycle=False, heads=14)
    tokens = with_signals(method, heads=16)
    corrected = torch.rand(576, generator=torch.Generator().manual_seed(5))
    selection = method.take(tokens, 144, corrected)
    assert torch.equal(selection.keep, corrected.topk(144).indices.sort().values)
    assert selection.written is None


def test_sparse_vlm_needs_text_behind_the_image():
    method = SparseVLM(keep_ratio=0.5)
    with pytest.raises(ValueError, match=r"sparse_vlm: no text"):
        method.select(with_signals(method, [(1, 4, 4)], words=0))


def test_how_many_are_recycled():
    assert recycled(376) == (113, 12)
    assert recycled(1) == (1, 1)
    assert recycled(10) == (4, 1)
    for n in range(2, 80):
        for k in range(1, n):
            merged = room(n, k)
            assert merged == min(recycled(n - k + merged)[1], k - 1)


@pytest.mark.parametrize("grids", [[(1, 24, 24)], [(1, 6, 9), (1, 5, 4)], [(1, 1, 3)]], ids=str)
@pytest.mark.parametrize("keep_ratio", [0.1, 0.35, 0.9])
def test_recycled_tokens_are_part_of_the_budget(grids, keep_ratio):
    method = SparseVLM(keep_ratio=keep_ratio, layers=(3,))
    assert HiddenStates() in method.needs
    tokens = with_signals(method, grids)
    selection = method.select(tokens)
    assert len(selection.keep) == method.budget(len(tokens))
    assert (selection.keep.diff() > 0).all()
    if (written := selection.written) is None:
        assert method.budget(len(tokens)) in (1, len(tokens))
        return
    assert torch.isin(written.slots, selection.keep).all()
    hidden = tokens.signals[HiddenStates()]
    for slot, embed in zip(written.slots, written.embeds, strict=True):
        members = written.origin == slot
        assert members[slot]
        assert torch.allclose(embed, hidden[members].mean(0), atol=1e-6)
    merged = written.origin >= 0
    unmerged = torch.zeros_like(merged).index_fill(0, selection.keep, True) & ~merged
    if len(grids) == 1:
        assert selection.scores[unmerged].min() >= selection.scores[merged].max()  # the best stay as they are
        rest = ~unmerged & ~merged
        assert not rest.any() or selection.scores[merged].min() >= selection.scores[rest].max()
        assert (int(merged.sum()), len(written.slots)) == recycled(len(tokens) - int(unmerged.sum()))


def test_recycled_tokens_on_top_as_released():
    method = SparseVLM(keep_ratio=200 / 576, layers=(3,), paper_compat=True)
    assert method.adaptive
    assert not SparseVLM(keep_ratio=0.5).adaptive
    selection = method.select(with_signals(method))
    assert len(selection.keep) == 200 + 12
    assert selection.stats == {"merged": 12}
    whole = SparseVLM(keep_ratio=1.0, paper_compat=True)
    assert len(whole.select(with_signals(whole)).keep) == 576
    assert whole.is_identity


def test_merged_tokens_keep_the_dtype_of_the_model():
    method = SparseVLM(keep_ratio=0.3, layers=(3,))
    tokens = with_signals(method)
    half = {signal: value.bfloat16() for signal, value in tokens.signals.items()}
    selection = method.select(dataclasses.replace(tokens, signals=half))
    assert selection.written.embeds.dtype == torch.bfloat16
    assert selection.scores.dtype == torch.float32


def test_the_rank_of_the_votes_decides():
    method = SparseVLM(keep_ratio=1.0, layers=(3,), count="rank", recycle=False)
    assert method.adaptive
    assert not method.is_identity
    tokens = with_signals(method, [(1, 4, 5)], words=7)
    ranked = [2, 0, 1, 0, 2, 1, 0]  # words 1, 3 and 6 say the same
    base = torch.rand(3, 20, generator=torch.Generator().manual_seed(1))
    same = torch.ones(7, 8)  # all words match alike, so all vote
    rows = base[ranked].expand(4, 7, 20)
    tokens = dataclasses.replace(tokens, signals={**tokens.signals, TextEmbeds(): same, AttentionRows(2, TEXT): rows})
    assert len(method.select(tokens).keep) == 3
    assert len(dataclasses.replace(method, rank_factor=0.5).select(tokens).keep) == 20 - 8
    assert len(dataclasses.replace(method, keep_ratio=0.1).select(tokens).keep) == 2  # the budget is the ceiling
    recycling = dataclasses.replace(method, recycle=True)
    tokens = dataclasses.replace(tokens, signals={**tokens.signals, HiddenStates(): torch.rand(20, 8)})
    assert len(recycling.select(tokens).keep) == 3


def test_density_peaks_finds_separate_clusters():
    generator = torch.Generator().manual_seed(0)
    corners = 10 * torch.tensor([[0.0, 0], [1, 0], [0, 1]])
    of = torch.tensor([0, 1, 2, 0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 2, 0, 1])
    points = 500 + corners[of] + 0.3 * torch.randn(len(of), 2, generator=generator)
    centres, cluster = density_peaks(points, 3)
    assert sorted(of[centres].tolist()) == [0, 1, 2]
    assert (centres.diff() > 0).all()
    assert torch.equal(of[centres][cluster], of)
    assert cluster[centres].tolist() == [0, 1, 2]


def test_density_peaks_against_its_definition():
    x = torch.randn(23, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    squared = (x[:, None] - x).square().sum(2) / 6
    rho = (-squared.sort(1).values[:, :5].mean(1)).exp()
    delta = torch.stack(
        [squared[i][rho > rho[i]].min() if (rho > rho[i]).any() else squared[i].max() for i in range(23)]
    )
    want = (rho * delta.sqrt()).topk(4).indices.sort().values
    centres, cluster = density_peaks(x, 4)
    assert torch.equal(centres, want)
    assert torch.equal(cluster, squared[:, want].argmin(1))


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_density_peaks_on_extreme_points(scale):
    x = scale * torch.randn(9, 4, generator=torch.Generator().manual_seed(3))
    for count in (1, 4, 9):
        centres, cluster = density_peaks(x, count)
        assert len(centres.unique()) == count
        assert torch.equal(cluster.unique(), torch.arange(count))
    if scale:  # far apart or not, the choice is the same as at scale 1 where densities do not underflow
        assert torch.equal(density_peaks(x, 9)[1], torch.arange(9))
