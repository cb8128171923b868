"""Pixel redundancy: the edge rule against loops, what it keeps of simple images, and what can be rebuilt from it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.support.visual import visual
from vlmopt.pruning import Novelty, PixelRedundancy
from vlmopt.pruning.pixel_redundancy import DISTANCES, anchors, predict, predict_in_waves

STD = torch.tensor([0.25, 0.5, 1.0])
ONE = torch.ones(3)


def encode(cells: Tensor, **settings):
    """Kept map [t, h, w], anchors and novelty of cells [t, h, w, g, c, v] of values in 0..1, normalised on the way."""
    normalised = (cells - 0.4) / STD[:, None]
    found = PixelRedundancy(**settings).encode(normalised, STD)
    return (found.novelty >= 0).view(cells.shape[:3]), found.anchor, found.novelty


def image(values: Tensor) -> Tensor:
    """Cells [1, h, w, 4, 3, 2] of one colour each from numbers [h, w]."""
    return values[None, :, :, None, None, None].expand(1, *values.shape, 4, 3, 2).float()


def rectangle(h: int, w: int, top: int, left: int, height: int, width: int) -> Tensor:
    out = torch.zeros(h, w)
    out[top : top + height, left : left + width] = 0.7
    return out


def apart(a: Tensor, b: Tensor, distance: str) -> float:
    gap = (a.double() - b.double()).abs()
    return float({"linf": gap.max(), "mean": gap.mean(), "rms": (gap**2).mean().sqrt()}[distance])


def loop(cells: Tensor, tolerance: float, distance: str, prefer: str = "left"):
    """The rule word by word: kept map [t, h, w] and what a reader of the kept cells alone sees."""
    t, h, w = cells.shape[:3]
    kept, seen = torch.zeros(t, h, w, dtype=torch.bool), cells.clone()

    def alike(a: Tensor, b: Tensor) -> bool:
        return apart(a, b, distance) <= tolerance

    for f in range(t):
        for y in range(h):
            for x in range(w):
                guesses = [seen[f - 1, y, x]] if f else []
                if y and x:
                    corner, left, above = seen[f, y - 1, x - 1], seen[f, y, x - 1], seen[f, y - 1, x]
                    rows, columns = alike(corner, above), alike(corner, left)
                    only = "left" if rows and not columns else "above" if columns and not rows else prefer
                    guesses.append(left if only == "left" else above)
                elif x:
                    guesses.append(seen[f, y, x - 1])
                elif y:
                    guesses.append(seen[f, y - 1, x])
                best = min(guesses, key=lambda g: apart(cells[f, y, x], g, distance), default=None)
                if best is None or not alike(cells[f, y, x], best):
                    kept[f, y, x] = True
                else:
                    seen[f, y, x] = best
    return kept, seen


def blocks(seed: int, t: int, h: int, w: int, levels: int, noise: float = 0.0) -> Tensor:
    """Frames with a few random rectangles of a few grey levels, on multiples of 1/64, which fp32 holds exactly."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> int:
        return int(torch.randint(n, (1,), generator=generator))

    frames = torch.zeros(t, h, w)
    for f in range(t):
        frames[f] = frames[f - 1] if f else draw(levels)
        for _ in range(6 if not f else 2):
            y, x = draw(h), draw(w)
            frames[f, y : y + 1 + draw(4), x : x + 1 + draw(5)] = draw(levels)
    cells = (frames * 8 / 64)[..., None, None, None].expand(t, h, w, 4, 3, 2)
    return (cells + noise * torch.rand(cells.shape, generator=generator)).float()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (1, 7, 1), (1, 2, 2), (1, 9, 11), (3, 5, 6), (4, 1, 3)])
@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_rule_against_loops(shape, tolerance, distance):
    for seed in range(3):
        cells = blocks(seed, *shape, levels=3, noise=0.1 if tolerance else 0.0)
        kept, seen = loop(cells, tolerance, distance)
        keep, anchor, _ = encode(cells, tolerance=tolerance, distance=distance)
        assert torch.equal(keep, kept)
        assert torch.equal(cells.flatten(0, 2)[anchor], seen.flatten(0, 2))
        assert bool(keep.flatten()[anchor].all())


def test_equality_needs_no_waves():
    """With tolerance 0 the sequential form and the vectorised one agree, on frames too."""
    for seed in range(4):
        cells = blocks(seed, 3, 8, 9, levels=2)
        novelty, predictor = predict(cells, ONE, 0.0, "linf")
        waves = predict_in_waves(cells.flatten(0, 2), (3, 8, 9), ONE, 0.0, "linf")
        assert torch.equal(novelty > 0, waves[0] > 0)
        same = [cells.flatten(0, 2)[anchors(n > 0, p)] for n, p in ((novelty, predictor), waves)]
        assert torch.equal(*same)


@pytest.mark.parametrize("tolerance", [0.0, 0.02])
def test_a_constant_image_keeps_one_cell(tolerance):
    keep, anchor, _ = encode(image(torch.full((12, 17), 0.3)), tolerance=tolerance)
    assert keep.nonzero().tolist() == [[0, 0, 0]]
    assert not anchor.any()


@pytest.mark.parametrize("tolerance", [0.0, 0.02])
def test_a_rectangle_costs_the_same_at_any_size(tolerance):
    counts = {
        (height, width): int(encode(image(rectangle(20, 30, 3, 4, height, width)), tolerance=tolerance)[0].sum())
        for height in (3, 5, 12)
        for width in (3, 8, 21)
    }
    assert len(set(counts.values())) == 1
    assert next(iter(counts.values())) <= 1 + 4  # the background, and at most one cell per corner


@pytest.mark.parametrize("seed", range(4))
def test_without_tolerance_the_image_can_be_rebuilt(seed):
    """By the rule alone, from the kept cells: the reader never looks at a cell that left."""
    cells = blocks(seed, 1, 10, 14, levels=3)
    keep, anchor, _ = encode(cells)
    rebuilt = torch.full_like(cells, float("nan"))
    for y in range(10):
        for x in range(14):
            if keep[0, y, x]:
                rebuilt[0, y, x] = cells[0, y, x]
            elif not y or not x:
                rebuilt[0, y, x] = rebuilt[0, y, x - 1] if not y else rebuilt[0, y - 1, x]
            else:
                corner, left, above = rebuilt[0, y - 1, x - 1], rebuilt[0, y, x - 1], rebuilt[0, y - 1, x]
                take_above = torch.equal(corner, left) and not torch.equal(corner, above)
                rebuilt[0, y, x] = above if take_above else left
    assert torch.equal(rebuilt, cells)
    assert torch.equal(cells.flatten(0, 2)[anchor].view_as(cells), cells)
    assert int(keep.sum()) < 10 * 14


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("direction", [(1, 0), (0, 1), (1, 1)])
def test_a_slow_gradient_never_drifts(direction, distance):
    """Every step is a fifth of the tolerance; compared with neighbours alone, one cell would stand for all."""
    y, x = torch.meshgrid(torch.arange(20), torch.arange(30), indexing="ij")
    cells = image((direction[0] * y + direction[1] * x) * 0.01)
    keep, anchor, _ = encode(cells, tolerance=0.05, distance=distance)
    flat = cells.flatten(0, 2)
    assert float((flat[anchor] - flat).abs().amax()) <= 0.05 + 1e-6
    assert 3 < int(keep.sum()) < 400
    assert keep[0, 0, 0]


def test_a_transposed_image_keeps_the_transposed_cells():
    """Up to the neighbour preferred where the corner does not tell: left here, above in the transposed image."""
    differ = 0
    for seed in range(6):
        cells = blocks(seed, 1, 9, 12, levels=3)
        keep, _, _ = encode(cells.transpose(1, 2))
        assert torch.equal(keep.transpose(1, 2), loop(cells, 0.0, "linf", prefer="above")[0])
        differ += not torch.equal(keep.transpose(1, 2), encode(cells)[0])
    assert differ  # the preference matters


@pytest.mark.parametrize("tolerance", [0.0, 0.02])
def test_noise_keeps_everything(tolerance):
    cells = torch.rand(2, 7, 9, 4, 3, 8, generator=torch.Generator().manual_seed(0))
    keep, anchor, novelty = encode(cells, tolerance=tolerance)
    assert bool(keep.all())
    assert torch.equal(anchor, torch.arange(2 * 7 * 9))
    assert novelty[0] == 2
    assert novelty[1:].max() <= 1


def test_frames_predict_from_the_frame_before():
    cells = torch.rand(1, 5, 6, 4, 3, 8, generator=torch.Generator().manual_seed(0)).repeat(4, 1, 1, 1, 1, 1)
    cells[2, 3, 4] += 0.25
    keep, anchor, _ = encode(cells)
    assert bool(keep[0].all())
    assert keep[1:].nonzero().tolist() == [[1, 3, 4], [2, 3, 4]]  # it comes, and it goes again
    assert anchor.view(4, 30)[1].tolist() == list(range(30))


def test_distances_are_those_of_unnormalised_pixels():
    """A difference of 0.1 counts as 0.1 in every channel, whatever the channel was divided by."""
    for channel in range(3):
        cells = image(torch.full((1, 2), 0.5)).clone()
        cells[0, 0, 1, 0, channel, 0] += 0.1
        values = 4 * 3 * 2
        for distance, size in (("linf", 0.1), ("mean", 0.1 / values), ("rms", 0.1 / math.sqrt(values))):
            novelty = encode(cells, distance=distance)[2]
            assert float(novelty[1]) == pytest.approx(size, rel=1e-4)
            assert int(encode(cells, distance=distance, tolerance=1.01 * size)[0].sum()) == 1
            assert int(encode(cells, distance=distance, tolerance=0.99 * size)[0].sum()) == 2


def test_half_precision_pixels():
    cells = blocks(0, 1, 8, 8, levels=3)
    want = encode(cells)[0]
    found = PixelRedundancy().encode(cells.bfloat16(), STD)
    assert torch.equal((found.novelty >= 0).view_as(want), want)


def test_broken_pixels_are_new():
    cells = image(torch.zeros(3, 4)).clone()
    cells[0, 1, 2] = float("nan")
    for tolerance in (0.0, 0.1):
        keep, anchor, novelty = encode(cells, tolerance=tolerance)
        assert keep[0, 1, 2]
        assert not novelty.isnan().any()
        assert bool(keep.flatten()[anchor].all())


def test_a_ceiling_keeps_what_is_newest():
    values = torch.zeros(4, 5)
    values[1, 1], values[2, 3], values[3, 0] = 0.2, 0.9, 0.5
    keep, anchor, novelty = encode(image(values), keep_ratio=0.1)
    assert keep[0].nonzero().tolist() == [[0, 0], [2, 3]]  # the first cell, and the largest difference
    assert bool(keep.flatten()[anchor].all())
    tokens = visual([(1, 4, 5)], [Novelty()])
    tokens.signals[Novelty()][:] = novelty
    chosen = PixelRedundancy(keep_ratio=0.1).select(tokens)
    assert chosen.keep.tolist() == [0, 13]
    assert chosen.stats == {"encoded": 2}


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"keep_tokens": 5}, ValueError, "give keep_ratio"),
        ({"layer": 1}, ValueError, "layer"),
        ({"positions": "repack"}, ValueError, "keep, pospad"),
        ({"tolerance": -0.1}, ValueError, ">= 0"),
        ({"tolerance": 2}, ValueError, "<= 1"),
        ({"distance": "cosine"}, ValueError, "linf, mean, rms"),
        ({"padding": "blank"}, ValueError, "padding"),
    ],
)
def test_settings_that_make_no_sense(settings, error, match):
    with pytest.raises(error, match=match):
        PixelRedundancy(**settings)
