"""FocusUI: the scorer, its loss and target; the selectors that read it, and the one that needs no training."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.support.visual import scorer, visual
from vlmopt.pruning import (
    FocusUI,
    InstructionSimilarity,
    PixelScale,
    PyramidDrop,
    Scorer,
    TextEmbeds,
    UIGraph,
    Uniform,
    VisualEmbeds,
    Weights,
    box_overlap,
    kl_loss,
    labels,
)
from vlmopt.pruning.similarity import rank

RNG = torch.Generator().manual_seed(0)
POOLINGS = ("mean", "max")


def embedded(cells=50, words=7, width=32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(cells, width, generator=rng), torch.randn(words, width, generator=rng)


def by_equation(scorer, visual, text, pooling):
    """The scorer written out, head by head, in fp64."""

    def enhanced(part, x):
        x, d = x.double(), x.shape[1]
        w, b = part.qkv.weight.double(), part.qkv.bias.double()
        q, k, v = (x @ w[i * d : (i + 1) * d].T + b[i * d : (i + 1) * d] for i in range(3))
        heads = []
        for h in range(part.heads):
            own = slice(h * d // part.heads, (h + 1) * d // part.heads)
            attention = (q[:, own] @ k[:, own].T / (d / part.heads) ** 0.5).softmax(1)
            heads.append(attention @ v[:, own])
        x = x + torch.cat(heads, 1) @ part.out.weight.double().T + part.out.bias.double()
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + part.norm.eps).sqrt()
        x = x * part.norm.weight.double() + part.norm.bias.double()
        x = x @ part.up.weight.double().T + part.up.bias.double()
        x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
        x = (x @ part.down.weight.double().T + part.down.bias.double()).tanh()
        return x / x.square().sum(1, keepdim=True).sqrt()

    products = enhanced(scorer.visual, visual) @ enhanced(scorer.text, text).T
    return products.mean(1) if pooling == "mean" else products.amax(1)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_scorer_is_its_equation(pooling):
    net = scorer(32)
    net.pooling = pooling
    cells, words = embedded()
    got = net(cells, words)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), by_equation(net, cells, words, pooling), atol=1e-5)
    assert got.abs().max() <= 1 + 1e-5


def test_the_scorer_has_twelve_squares_of_its_width():
    count = sum(p.numel() for p in Scorer(64).parameters())
    assert 12 * 64**2 < count < 12 * 64**2 + 30 * 64


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_order_of_words_and_cells_does_not_matter(pooling):
    net = scorer(32)
    net.pooling = pooling
    cells, words = embedded()
    scores, turn = net(cells, words), torch.randperm(50, generator=RNG)
    assert torch.allclose(net(cells, words[torch.randperm(7, generator=RNG)]), scores, atol=1e-6)
    assert torch.allclose(net(cells[turn], words), scores[turn], atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_batch_of_instructions_of_several_lengths(pooling):
    net = scorer(32)
    net.pooling = pooling
    pairs = [embedded(words=n, seed=n) for n in (3, 7, 5)]
    cells = torch.stack([cells for cells, _ in pairs])
    words = torch.nn.utils.rnn.pad_sequence([words for _, words in pairs], batch_first=True, padding_value=9.0)
    mask = torch.arange(7) < torch.tensor([3, 7, 5])[:, None]
    together = net(cells, words, mask)
    for row, pair in zip(together, pairs, strict=True):
        assert torch.allclose(row, net(*pair), atol=1e-6)


def test_thousands_of_cells_are_attended_to_in_pieces():
    net = scorer(16)
    cells, words = embedded(cells=2500, width=16)
    assert torch.allclose(net(cells, words).double(), by_equation(net, cells, words, "mean"), atol=1e-5)


def test_half_precision_scores_in_full():
    net = scorer(32).bfloat16()
    cells, words = embedded()
    scores = net(cells, words)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, scorer(32)(cells, words), atol=0.05)


def test_dropout_acts_in_training_only():
    net, (cells, words) = scorer(32), embedded()
    assert torch.equal(net(cells, words), net(cells, words))
    net.train()
    assert not torch.equal(net(cells, words), net(cells, words))


def test_the_loss_is_zero_up_to_a_constant_and_falls_when_scores_come_nearer():
    target = torch.rand(3, 40, generator=RNG)
    assert kl_loss(target + torch.tensor([[0.3], [-2.0], [5.0]]), target).abs() < 1e-6
    assert kl_loss(target[0] - 1, target[0]).abs() < 1e-6
    far = torch.rand(3, 40, generator=RNG)
    p, q = target.double().softmax(1), far.double().softmax(1)
    assert torch.allclose(kl_loss(far, target).double(), (p * (p / q).log()).sum(1).mean(), atol=1e-6)
    assert 0 < kl_loss((far + target) / 2, target) < kl_loss(far, target)


def test_the_loss_teaches_the_scorer():
    torch.manual_seed(0)
    net, (cells, words) = Scorer(32, dropout=0.0), embedded()
    target = torch.zeros(50)
    target[[3, 17]] = 1
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = kl_loss(net(cells, words), target)
        loss.backward()
        optimizer.step()
    assert net(cells, words).topk(2).indices.sort().values.tolist() == [3, 17]


def test_box_overlap():
    grid = box_overlap(torch.tensor([[0.25, 0.5, 0.75, 1.0]]), 2, 4).view(2, 4)
    assert grid.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0]]
    part = box_overlap(torch.tensor([[0.125, 0.25, 0.5, 0.75]]), 2, 4).view(2, 4)
    assert part.tolist() == [[0.25, 0.5, 0, 0], [0.25, 0.5, 0, 0]]
    two = box_overlap(torch.tensor([[0.125, 0.25, 0.5, 0.75], [0.0, 0.0, 0.25, 0.5]]), 2, 4).view(2, 4)
    assert two.tolist() == [[1.0, 0.5, 0, 0], [0.25, 0.5, 0, 0]]
    assert box_overlap(torch.zeros(0, 4), 2, 4).tolist() == [0] * 8
    sides = torch.rand(5, 2, 2, generator=RNG).sort(1).values
    for box in torch.cat([sides[:, 0], sides[:, 1]], 1):
        area = (box[2] - box[0]) * (box[3] - box[1])
        assert torch.isclose(box_overlap(box[None], 7, 9).sum() / 63, area, atol=1e-6)


def test_labels_mix_box_and_graph():
    box, graph = torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.tensor([0.2, 0.4, 0.6, 1.0])
    assert torch.allclose(labels(box, graph, 2, 2), torch.tensor([0.84, 0.08, 0.92, 0.2]))
    assert torch.allclose(labels(box, graph, 2, 2, weight=0.0), graph)
    assert torch.allclose(labels(torch.zeros(0, 4), graph, 2, 2), 0.2 * graph)
    for bad in ({"weight": 1.1}, {"rows": 3}):
        with pytest.raises(ValueError, match="weight must be within"):
            labels(**{"boxes": box, "graph": graph, "rows": 2, "columns": 2, **bad})


def test_scorers_that_cannot_be():
    with pytest.raises(ValueError, match="heads must divide dim"):
        Scorer(30, 8)
    with pytest.raises(ValueError, match="mean, max"):
        Scorer(32, pooling="sum")


def test_focus_ui_ranks_every_image_by_its_scorer_alone():
    method = FocusUI(keep_ratio=0.3, scorer="s")
    tokens = visual([(1, 5, 6), (1, 4, 4)], method.captures)
    net, words = tokens.signals[Weights("s")], tokens.signals[TextEmbeds()]
    kept = method.select(tokens).keep
    for item, share in ((0, 9), (1, 5)):
        own = (tokens.item == item).nonzero()[:, 0]
        scores = net(tokens.signals[VisualEmbeds()][own], words)
        assert kept[torch.isin(kept, own)].tolist() == sorted(own[scores.topk(share).indices].tolist())


def without_text(tokens):
    return dataclasses.replace(tokens, signals={**tokens.signals, TextEmbeds(): torch.zeros(0, 12)})


def test_without_an_instruction():
    method = InstructionSimilarity(keep_ratio=0.5, alpha=0.8)
    tokens = visual([(1, 6, 6)], method.captures)
    graph = UIGraph(keep_ratio=0.5)
    assert torch.equal(method.score(without_text(tokens)), graph.score(tokens))
    trained = FocusUI(keep_ratio=0.5, scorer="s")
    with pytest.raises(ValueError, match="no text behind the last visual token"):
        trained.select(without_text(visual([(1, 6, 6)], trained.captures)))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_instruction_similarity_is_its_equation(pooling):
    method = InstructionSimilarity(keep_ratio=0.5, alpha=0.7, pooling=pooling)
    tokens = visual([(1, 6, 6)], method.captures)
    z, text = tokens.signals[VisualEmbeds()], tokens.signals[TextEmbeds()]
    centred = z - z.mean(0)
    cosines = torch.stack([torch.cosine_similarity(centred, word[None]) for word in text], 1)
    pooled = cosines.mean(1) if pooling == "mean" else cosines.amax(1)
    place = pooled.argsort().argsort() / 35
    want = 0.7 * place + 0.3 * UIGraph(keep_ratio=0.5).score(tokens)
    assert torch.allclose(method.score(tokens), want, atol=1e-6)
    moved = dataclasses.replace(tokens, signals={**tokens.signals, VisualEmbeds(): z + 5})
    assert torch.allclose(method.score(moved), want, atol=1e-6), "a common offset of all cells says nothing"
    assert PixelScale() in method.captures


def test_ranks_are_shared_by_equal_scores():
    assert rank(torch.tensor([3.0, 1.0, 1.0, 7.0, -2.0])).tolist() == [0.75, 0.25, 0.25, 1.0, 0.0]
    assert rank(torch.tensor([4.0])).tolist() == [0.0]


def test_where_a_trained_marker_may_stand():
    trained = {"keep_ratio": 0.5, "positions": "pospad", "marker": "trained"}
    assert Uniform(**trained, marker_from="a").weights == {"a": True}
    assert Uniform(keep_ratio=0.5).weights == {}
    assert FocusUI(keep_ratio=0.5, scorer="s").weights == {"s": True}
    assert FocusUI(keep_ratio=0.5, scorer="s", marker_from="a").weights == {"s": False, "a": True}
    assert FocusUI(keep_ratio=0.5, scorer="s", positions="keep").weights == {"s": False}
    assert FocusUI(keep_ratio=0.5, scorer="s", marker="mean").weights == {"s": False}
    for settings, match in (
        ({}, "needs marker_from"),
        ({"layer": 2, "marker_from": "a"}, "before layer 2.*trained as an input"),
        ({"marker": "mean", "marker_from": "a"}, "marker='trained' only"),
    ):
        with pytest.raises(ValueError, match=match):
            Uniform(**{**trained, **settings})
    with pytest.raises(ValueError, match="before layer 1"):
        PyramidDrop(keep_ratio=0.5, layers=(1, 2), positions="pospad", marker="trained", marker_from="a")
    with pytest.raises(ValueError, match="give scorer"):
        FocusUI(keep_ratio=0.5)
