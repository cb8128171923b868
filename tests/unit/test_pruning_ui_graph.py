"""The UI graph: components of like cells, their weights, and what a screen's cells score."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque

import pytest
import torch

from tests.support.visual import cells, visual, without_coords
from vlmopt.pruning import Pixels, PixelScale, UIGraph, ui_graph
from vlmopt.pruning.ui_graph import THRESHOLD, components

ONE = torch.ones(3)


def graph(image, scale=ONE, **settings):
    """Weights [h, w] of an image [h, w, c, v] of one frame."""
    h, w = image.shape[:2]
    coords = cells((1, h, w))
    return ui_graph(image.flatten(0, 1), scale, coords, torch.zeros(h * w).long(), **settings).view(h, w)


def flat(h, w, values=12):
    return torch.full((h, w, 3, values), 0.4)


def by_search(image, threshold):
    """Sizes of components [h, w], cell by cell."""
    h, w = image.shape[:2]
    size = torch.zeros(h, w)
    for start in [(y, x) for y in range(h) for x in range(w)]:
        if size[start]:
            continue
        found, todo = {start}, deque([start])
        while todo:
            y, x = todo.popleft()
            for near in ((y, x + 1), (y, x - 1), (y + 1, x), (y - 1, x)):
                if 0 <= near[0] < h and 0 <= near[1] < w and near not in found:
                    apart = (image[y, x].double() - image[near].double()).square().mean().sqrt()
                    if apart < threshold:
                        found.add(near)
                        todo.append(near)
        for cell in found:
            size[cell] = len(found)
    return size


@pytest.mark.parametrize(
    ("n", "weight"), [(1, 1), (2, 0.9102), (3, 0.7213), (4, 0.6213), (10, 0.4170), (100, 0.2167), (1000, 0.1447)]
)
def test_a_plain_image_is_one_component(n, weight):
    assert torch.allclose(graph(flat(1, n)), torch.full((1, n), float(weight)), atol=5e-5)
    assert torch.allclose(graph(flat(n, 1)), torch.full((n, 1), 1 / max(1, math.log(n + 1))))
    assert torch.allclose(graph(flat(1, n), weighting="inverse"), torch.full((1, n), 1 / n))
    assert torch.allclose(graph(flat(1, n), weighting="sqrt"), torch.full((1, n), n**-0.5))


def test_a_cell_unlike_the_rest_scores_one():
    image = flat(7, 9)
    image[3, 4] += 0.3
    weights = graph(image)
    assert weights[3, 4] == 1
    weights[3, 4] = weights[0, 0]
    assert torch.allclose(weights, torch.full((7, 9), 1 / math.log(63)))


def blocks(h=14, w=11, seed=0):
    """Random rectangles, with noise below the threshold."""
    rng = torch.Generator().manual_seed(seed)
    image = torch.rand(h, w, 3, 12, generator=rng) * 0.02
    for _ in range(12):
        y, x, dy, dx = (int(torch.randint(0, n, (), generator=rng)) for n in (h, w, 6, 6))
        image[y : y + dy, x : x + dx] += 0.1 * torch.rand(3, 1, generator=rng)
    return image


@pytest.mark.parametrize("seed", range(8))
def test_components_are_those_of_a_search(seed):
    image = blocks(seed=seed)
    size = by_search(image, THRESHOLD)
    assert size.unique().numel() > 3
    assert torch.allclose(graph(image, weighting="inverse"), 1 / size)


@pytest.mark.parametrize("seed", range(3))
def test_turned_and_brightened_images(seed):
    image = blocks(seed=seed)
    weights = graph(image)
    assert torch.equal(graph(image.transpose(0, 1)), weights.T)
    assert torch.equal(graph(image + 0.25), weights)
    assert torch.equal(graph(image * 4, scale=ONE / 4), weights)  # normalised pixels, un-normalised differences


def test_no_threshold_joins_nothing():
    assert torch.equal(graph(flat(6, 5), threshold=0.0), torch.ones(6, 5))


@pytest.mark.parametrize("values", [4704, 1176, 6144])  # 28-px cells with two temporal copies, one of 14 px, 32 px
def test_the_threshold_is_that_of_the_paper_for_cells_of_any_size(values):
    for delta, joined in ((0.02915, True), (0.02917, False)):
        image = torch.zeros(1, 2, 3, values // 3)
        image[0, 1] = delta
        assert (delta * 4704**0.5 < 2) == joined
        assert (graph(image)[0, 0] < 1) == joined
    assert pytest.approx(0.02916, abs=5e-6) == THRESHOLD


def test_channels_count_by_their_own_scale():
    image = torch.zeros(1, 2, 3, 8)
    image[0, 1, 2] = 0.1
    assert graph(image, torch.tensor([1.0, 1.0, 0.5]))[0, 0] < 1
    assert graph(image, torch.tensor([0.5, 0.5, 1.0]))[0, 0] == 1


def shapes():
    """Edges of awkward graphs: a path in random order, a star, a comb, a spiral's chain, two halves, nothing."""
    rng = torch.Generator().manual_seed(0)
    path = torch.randperm(500, generator=rng)
    yield 500, path[:-1], path[1:]
    yield 60, torch.full((59,), 59), torch.arange(59)
    yield 90, torch.cat([torch.arange(29), torch.arange(30), torch.arange(30, 60)]), torch.arange(1, 90)[:89]
    yield 400, torch.arange(399).flip(0), torch.arange(1, 400).flip(0)
    yield 10, torch.tensor([0, 2, 4, 1, 3]), torch.tensor([2, 4, 6, 3, 5])
    yield 5, torch.tensor([]).long(), torch.tensor([]).long()
    for seed in range(20):
        rng.manual_seed(seed)
        yield 80, *torch.randint(0, 80, (2, 20 + 4 * seed), generator=rng)


def test_components_bear_their_smallest_index():
    for n, first, second in shapes():
        label = list(range(n))
        for _ in range(n):
            for a, b in zip(first.tolist(), second.tolist(), strict=True):
                label[a] = label[b] = min(label[a], label[b])
            if all(label[a] == label[b] for a, b in zip(first.tolist(), second.tolist(), strict=True)):
                break
        assert components(n, first, second).tolist() == label


def screen(grids, seed=0):
    """Tokens whose cells are plain but for a few."""
    tokens = visual(grids, seed=seed)
    pixels = torch.zeros(len(tokens), 3, 8)
    odd = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(1))[: len(tokens) // 5]
    pixels[odd] = torch.rand(len(odd), 3, 8, generator=torch.Generator().manual_seed(2))
    return dataclasses.replace(tokens, signals={Pixels(repeated=False): pixels, PixelScale(): ONE}), odd


def test_frames_and_images_have_graphs_of_their_own():
    method = UIGraph(keep_ratio=0.5)
    tokens, _ = screen([(3, 4, 5), (1, 4, 5), (1, 1, 1)])
    scores = method.score(tokens)
    for frame in tokens.frame.unique():
        part = tokens.subset((tokens.frame == frame).nonzero()[:, 0])
        assert torch.equal(scores[tokens.frame == frame], method.score(part))
    plain = dataclasses.replace(tokens, signals={**tokens.signals, Pixels(repeated=False): torch.zeros(81, 3, 8)})
    assert torch.allclose(method.score(plain), torch.tensor([1 / math.log(21)] * 80 + [1.0]))


def test_distinctive_cells_stay_and_equal_ones_are_drawn_by_lot():
    tokens, odd = screen([(1, 10, 10)])
    alone = odd[(UIGraph(keep_ratio=1.0).score(tokens)[odd]) == 1]
    keep = UIGraph(keep_ratio=0.4).select(tokens).keep
    assert torch.isin(alone, keep).all()
    background = keep[~torch.isin(keep, odd)]
    assert len(background) == 20
    assert background.max() >= 60, "not the first of the background, by index"
    assert torch.equal(keep, UIGraph(keep_ratio=0.4).select(tokens).keep)
    other = UIGraph(keep_ratio=0.4).select(dataclasses.replace(tokens, seed=1)).keep
    assert torch.isin(alone, other).all()
    assert not torch.equal(keep, other)


def test_cells_without_a_place_or_without_pixels_join_nothing():
    tokens, _ = screen([(1, 4, 4)])
    plain = dataclasses.replace(tokens, signals={**tokens.signals, Pixels(repeated=False): torch.zeros(16, 3, 8)})
    assert UIGraph(keep_ratio=0.5).score(without_coords(plain)).eq(1).all()
    pixels = torch.zeros(16, 3, 8)
    pixels[5] = float("nan")
    scores = UIGraph(keep_ratio=0.5).score(
        dataclasses.replace(tokens, signals={**tokens.signals, Pixels(repeated=False): pixels})
    )
    assert scores[5] == 1
    assert scores.isfinite().all()


def test_six_thousand_cells_take_milliseconds():
    pixels = torch.rand(6000, 3, 784)  # 28-px cells without their temporal copy
    pixels[torch.rand(6000) < 0.7] = 0.5
    coords, frame = cells((1, 60, 100)), torch.zeros(6000).long()
    spent = []
    for _ in range(5):
        start = time.process_time()  # of one thread, however busy the machine is
        ui_graph(pixels, ONE, coords, frame)
        spent.append(time.process_time() - start)
    assert min(spent) < 0.1  # measured: 0.015; a loop over cells takes more than a second
