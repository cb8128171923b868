"""The selector that goes by the sensitivity of the projector: what decides, in which order, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

import vlmopt
from tests.support.families import FAMILIES
from tests.support.projectors import example, projector, random, scored, tokens_with
from tests.support.snapshot import differences, snapshot
from vlmopt.pruning import Projector, ProjectorCall, VisualEmbeds
from vlmopt.pruning.greedy import farthest
from vlmopt.pruning.sensitivity import directions, finite_difference
from vlmopt.pruning.zeroth_order import ZeroOrder, stretch


def test_golden_choice():
    """Gains at the second pick are 0, .5 and 0; then zeros tie."""
    z = torch.tensor([[1, 0], [1, 0], [0, 1], [0.5**0.5, 0.5**0.5]])
    lengths = torch.tensor([3, 2.9, 2, 1])
    inputs = torch.cat([lengths.sqrt()[:, None], torch.zeros(4, 1)], 1)[:, None]  # M = x_1^2 / 2: S ~ x_1
    call = ProjectorCall(inputs**2, lambda x: x[:, 0].square() / 2, None)
    tokens = tokens_with(call, z)
    for k, want in ((1, [0]), (2, [0, 2]), (3, [0, 1, 2]), (4, [0, 1, 2, 3])):
        selection = ZeroOrder(keep_tokens=k).pick(tokens, k)
        assert selection.keep.tolist() == want
    assert torch.allclose(selection.scores, torch.tensor([1, 0.95, 0.5, 0]), atol=1e-4)
    assert ZeroOrder(keep_tokens=2, combine="sensitivity").select(tokens).keep.tolist() == [0, 1]


@pytest.mark.parametrize("estimator", ["finite_difference", "jvp"])
def test_a_linear_projector_leaves_the_choice_to_diversity(estimator):
    matrix, inputs = random(16, 12, seed=3), random(30, 1, 12, seed=4)
    call = ProjectorCall(inputs, lambda x: x[:, 0] @ matrix.T + 1, None)
    tokens = tokens_with(call, inputs[:, 0] @ matrix.T + 1)
    got = scored(tokens, estimator)
    want = (directions(64, 1, 12, 0)[:, 0] @ matrix.T).norm(dim=1).mean()
    assert torch.allclose(got, want.expand(30), rtol=1e-4)
    selection = ZeroOrder(keep_tokens=9, estimator=estimator).select(tokens)
    assert selection.scores.tolist() == [1.0] * 30
    assert selection.stats == {"constant_sensitivity": True}
    order = farthest(tokens.signals[VisualEmbeds()], 9, first=torch.tensor(0))  # all tie, so the lowest index begins
    assert selection.keep.tolist() == order.sort().values.tolist()
    assert not ZeroOrder(keep_tokens=9).select(example()).stats["constant_sensitivity"]


@pytest.mark.parametrize("estimator", ["finite_difference", "jvp", "closed_form", "frobenius"])
def test_scale_of_the_projector_does_not_matter(estimator):
    tokens = example("layer")
    call = tokens.signals[Projector()]
    second = nn.Linear(32, 16)
    second.weight.data, second.bias.data = 7 * call.layers.second.weight, 7 * call.layers.second.bias
    scaled = ProjectorCall(call.inputs, lambda x: 7 * call.function(x), dataclasses.replace(call.layers, second=second))
    larger = dataclasses.replace(tokens, signals={**tokens.signals, Projector(): scaled})
    assert torch.allclose(scored(larger, estimator), 7 * scored(tokens, estimator), rtol=1e-3)
    method = ZeroOrder(keep_ratio=0.3, estimator=estimator)
    got, want = method.select(larger), method.select(tokens)
    assert torch.equal(got.keep, want.keep)
    assert torch.allclose(got.scores, want.scores, atol=1e-3)


def test_constant_scores_are_all_ones():
    for tolerance in (0.0, 1e-4):
        ones, flat = stretch(torch.full((4,), 3.0), tolerance)
        assert (ones.tolist(), flat) == ([1.0] * 4, True)
        assert stretch(torch.zeros(1), tolerance)[0].tolist() == [1.0]
    noise = torch.tensor([1.0, 1 + 5e-5])
    assert stretch(noise, 1e-4)[0].tolist() == [1, 1]
    assert torch.allclose(stretch(noise, 0.0)[0], torch.tensor([0.0, 1]), atol=1e-3)
    assert torch.allclose(stretch(torch.tensor([1.0, 2, 5]), 1e-4)[0], torch.tensor([0, 0.25, 1]))


@pytest.mark.parametrize("combine", ["product", "sensitivity", "diversity"])
def test_one_token_and_all_tokens(combine):
    method = ZeroOrder(keep_tokens=1, combine=combine)
    assert method.pick(example(n=1), 1).keep.tolist() == [0]
    assert method.pick(example(n=11), 11).keep.tolist() == list(range(11))


def test_copies_come_last():
    tokens = example(n=20)
    call = tokens.signals[Projector()]
    twice = dataclasses.replace(call, inputs=call.inputs.repeat(2, 1, 1))
    keep = ZeroOrder(keep_tokens=19).select(tokens_with(twice, call.function(twice.inputs))).keep
    assert (keep % 20).unique().numel() == 19  # all but the least sensitive one, whose gain is 0 as well
    assert (keep < 20).all()


def test_needs_follow_what_decides():
    needs = {combine: ZeroOrder(keep_ratio=0.5, combine=combine).needs for combine in ("product", "sensitivity")}
    assert needs == {"product": {Projector(), VisualEmbeds()}, "sensitivity": {Projector()}}
    diverse = ZeroOrder(keep_tokens=6, combine="diversity")
    assert diverse.needs == {VisualEmbeds()}
    tokens = example(n=30)
    embeds = tokens.signals[VisualEmbeds()]
    only = dataclasses.replace(tokens, signals={VisualEmbeds(): embeds})
    assert torch.equal(diverse.select(only).keep, farthest(embeds, 6).sort().values)


def test_newline_tokens_are_never_scored():
    layers, function = projector(p=1)
    inputs = random(20, 1, 6)
    coords = torch.cartesian_prod(torch.zeros(1).long(), torch.arange(4), torch.arange(4)).view(4, 4, 3)
    coords = torch.cat([coords, torch.full((4, 1, 3), -1)], 1).reshape(-1, 3)
    newline = (coords < 0).all(1)
    inputs[newline] = math.nan
    tokens = tokens_with(ProjectorCall(inputs, function, layers), torch.ones(20, 3), coords=coords, grids=((1, 4, 4),))
    for k in (1, 7, 16, 18):
        selection = ZeroOrder(keep_tokens=k).select(tokens)
        assert len(selection.keep) == k
        assert int(newline[selection.keep].sum()) == max(k - 16, 0)
    assert torch.equal(ZeroOrder(keep_tokens=7).select(tokens).scores.isnan(), newline)


def test_other_projectors_have_no_closed_form():
    tokens = example()
    signals = {**tokens.signals, Projector(): dataclasses.replace(tokens.signals[Projector()], layers=None)}
    tokens = dataclasses.replace(tokens, signals=signals)
    for settings in ({"estimator": "closed_form"}, {"estimator": "frobenius"}, {"rank": 3}):
        with pytest.raises(ValueError, match=r"zeroth_order: \w+=.*one hidden layer.*jvp"):
            ZeroOrder(keep_tokens=3, **settings).select(tokens)
    assert len(ZeroOrder(keep_tokens=3).select(tokens).keep) == 3


@pytest.mark.parametrize("settings", [{"estimator": "closed_form"}, {"estimator": "frobenius"}, {"rank": 3}], ids=str)
def test_what_the_projector_of_a_model_does_not_allow_is_refused_before_anything_changes(settings):
    model = copy.deepcopy(FAMILIES["llava"].build())
    model.model.multi_modal_projector.act = nn.Sequential(nn.Linear(64, 64), nn.GELU())
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"zeroth_order: \w+=.*one hidden layer.*jvp"):
        vlmopt.optimize(model, ZeroOrder(keep_ratio=0.5, **settings))
    assert differences(before, snapshot(model)) == []
    vlmopt.optimize(model, ZeroOrder(keep_ratio=0.5, combine="diversity", **settings))  # reads no projector
    for estimator in ("auto", "jvp", "finite_difference"):
        vlmopt.optimize(model, ZeroOrder(keep_ratio=0.5, estimator=estimator))


def test_scores_that_are_not_finite_are_refused():
    tokens = example()
    tokens.signals[Projector()].inputs[3] = math.inf
    with pytest.raises(ValueError, match=r"zeroth_order.*finite"):
        ZeroOrder(keep_tokens=5).select(tokens)


def test_as_released():
    method = ZeroOrder(keep_ratio=0.2223, paper_compat=True)
    assert method.budget(576) == 128
    assert ZeroOrder(keep_ratio=0.115, paper_compat=True).budget(5) == 1
    assert (ZeroOrder(keep_ratio=0.35).budget(10), ZeroOrder(keep_ratio=0.35, paper_compat=True).budget(10)) == (4, 3)
    tokens = example()
    steps = torch.full((40,), 0.01)
    call = tokens.signals[Projector()]
    want = finite_difference(call.function, call.inputs, directions(64, 4, 6, 0), steps)
    assert torch.allclose(method.sensitivity(tokens), want, rtol=1e-3)
    with pytest.raises(ValueError, match=r"paper_compat.*jvp"):
        ZeroOrder(keep_ratio=0.5, paper_compat=True, estimator="jvp")
    with pytest.raises(ValueError, match=r"layer.*<= 0"):
        ZeroOrder(keep_ratio=0.5, layer=1)
