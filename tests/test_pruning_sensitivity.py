"""Sensitivity of projectors: golden values, its four estimators against each other, and the selector that uses it."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPatchMerger

from pruning import Projector, ProjectorCall, TwoLayers, VisualEmbeds, VisualTokens
from pruning.greedy import farthest
from pruning.sensitivity import (
    closed_form,
    directions,
    finite_difference,
    fold,
    forward_mode,
    frobenius,
    low_rank,
    relative_steps,
)
from pruning.zeroth_order import ESTIMATORS, ZeroOrder, stretch

FORMS = ["none", "layer", "layer_all", "plain_layer", "rms", "qwen", "eps"]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norms(form, d, p):
    """The norm of a projector and whether it acts on patches; gains and shifts are far from 1 and 0."""
    norm = {
        "none": lambda: None,
        "layer": lambda: nn.LayerNorm(d),
        "layer_all": lambda: nn.LayerNorm(p * d),
        "plain_layer": lambda: nn.LayerNorm(d, elementwise_affine=False),
        "rms": lambda: nn.RMSNorm(d),
        "qwen": lambda: Qwen2_5_VLPatchMerger(1, d).ln_q,
        "eps": lambda: nn.LayerNorm(d, eps=0.5),
    }[form]()
    for parameter in norm.parameters() if norm is not None else ():
        parameter.data.add_(0.3 * random(*parameter.shape, seed=9))
    return norm, form != "layer_all"


def projector(form="none", p=4, d=6, h=32, out=16, bias=True, seed=0):
    """A random MLP as its parts and as a function."""
    norm, per_patch = norms(form, d, p)
    torch.manual_seed(seed)
    first, second, gelu = nn.Linear(p * d, h, bias=bias), nn.Linear(h, out), nn.GELU()
    layers = TwoLayers(norm, per_patch, first.requires_grad_(False), gelu, second.requires_grad_(False))

    def function(x):
        y = x if norm is None else norm(x if per_patch else x.flatten(1))
        return second(gelu(first(y.flatten(1))))

    return layers, function


def tokens_with(call, embeds=None, seed=0, **changes) -> VisualTokens:
    n = len(call.inputs)
    signals = {Projector(): call, VisualEmbeds(): call.inputs.flatten(1) if embeds is None else embeds}
    coords = torch.stack([torch.zeros(n).long(), torch.zeros(n).long(), torch.arange(n)], 1)
    plain = VisualTokens(n, torch.arange(n), torch.zeros(n).long(), coords, ((1, 1, n),), signals, seed)
    return dataclasses.replace(plain, **changes)


def example(form="none", n=40, p=4, d=6, seed=0, **changes) -> VisualTokens:
    layers, function = projector(form, p, d)
    inputs = random(n, p, d, seed=seed + 1) * torch.linspace(0.5, 3, n)[:, None, None]
    return tokens_with(ProjectorCall(inputs, function, layers), function(inputs), **changes)


def scored(tokens, estimator="auto", **settings):
    return ZeroOrder(keep_ratio=0.5, estimator=estimator, **settings).sensitivity(tokens)


def spearman(a, b):
    return torch.corrcoef(torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double())[0, 1]


def test_golden_relu():
    x = torch.tensor([[[1.0, 1]], [[1, -1]], [[-1, -1]]])
    bank, want = torch.tensor([[[0.6, 0.8]]]), torch.tensor([1.0, 0.6, 0])
    relu = lambda x: x[:, 0].relu()  # noqa: E731
    assert torch.allclose(finite_difference(relu, x, bank, torch.full((3,), 0.01)), want, atol=1e-4)
    assert torch.allclose(forward_mode(relu, x, bank), want)


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


@pytest.mark.parametrize("form", FORMS)
def test_estimators_agree(form):
    tokens = example(form)
    exact = scored(tokens, "jvp")
    assert exact.dtype == torch.float32
    assert torch.allclose(scored(tokens, "closed_form"), exact, rtol=1e-5)
    assert torch.allclose(scored(tokens, "finite_difference"), exact, rtol=1e-3)
    call = tokens.signals[Projector()]
    whole = forward_mode(call.function, call.inputs, directions(64, 4, 6, 0))  # of the very modules
    assert torch.allclose(exact, whole, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_frobenius_is_the_norm_of_the_jacobian(form):
    tokens = example(form, n=7)
    call = tokens.signals[Projector()]
    jacobian = torch.stack([torch.func.jacfwd(lambda x: call.function(x[None])[0])(x) for x in call.inputs])
    want = jacobian.flatten(1).norm(dim=1) / 24**0.5
    assert torch.allclose(scored(tokens, "frobenius"), want, rtol=1e-4)


@pytest.mark.parametrize("form", ["none", "qwen"])
def test_frobenius_ranks_like_many_directions(form):
    layers, function = projector(form, p=1, d=48, h=192, out=64)
    inputs = random(60, 1, 48, seed=5) * torch.linspace(0.5, 4, 60)[:, None, None]
    tokens = tokens_with(ProjectorCall(inputs, function, layers))
    mean, root = scored(tokens, "closed_form", directions=512), scored(tokens, "frobenius")
    assert spearman(mean, root) > 0.99
    assert (mean < root * 1.01).all()


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


def test_even_functions_cancel():
    _, function = projector()
    x = random(1, 4, 6)
    bank, steps = directions(16, 4, 6, 0), torch.tensor([0.05])
    even = lambda y: function(y) + 50 * (y - x).flatten(1).square() @ random(24, 16)  # noqa: E731
    assert torch.allclose(
        finite_difference(even, x, bank, steps), finite_difference(function, x, bank, steps), rtol=1e-4
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("form", ["none", "qwen"])
def test_tokens_are_scored_one_by_one(form, estimator):
    tokens = example(form)
    every = scored(tokens, estimator)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    for index in (order, order[:13].sort().values, torch.tensor([5])):
        assert torch.allclose(scored(tokens.subset(index), estimator), every[index], rtol=1e-4)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_many_tokens_in_parts(estimator, monkeypatch):
    tokens = example("layer", n=50)
    whole = scored(tokens, estimator)
    monkeypatch.setattr("pruning.sensitivity.ROWS", 300)
    assert torch.allclose(scored(tokens, estimator), whole, rtol=1e-4)


def test_the_seed_alone_decides():
    tokens = example()
    state = torch.get_rng_state()
    first = scored(tokens, rank=5)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    assert torch.equal(first, scored(tokens, rank=5))
    few = [scored(dataclasses.replace(tokens, seed=seed), "closed_form") for seed in (0, 1)]
    assert not torch.equal(*few)
    assert torch.allclose(directions(9, 4, 6, 3).flatten(1).norm(dim=1), torch.ones(9))
    assert torch.equal(directions(9, 4, 6, 3), directions(9, 4, 6, 3))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_bfloat16_is_scored_in_fp32(estimator):
    tokens = example("qwen")
    call = tokens.signals[Projector()]
    inputs = (100 * call.inputs).bfloat16()  # large, as before Qwen's merger
    full = projector("qwen")[0]
    half = projector("qwen")[0]
    for layers in (full, half):
        for module in (layers.norm, layers.first, layers.second):
            module.bfloat16()
    for module in (full.norm, full.first, full.second):
        module.float()
    got = [
        scored(tokens_with(ProjectorCall(x, call.function, layers)), estimator)
        for x, layers in ((inputs, half), (inputs.float(), full))
    ]
    assert got[0].dtype == torch.float32
    assert torch.equal(*got)
    assert half.first.weight.dtype == torch.bfloat16


def test_a_function_gets_the_dtype_of_its_inputs():
    module = nn.Sequential(nn.Linear(12, 24), nn.SiLU(), nn.Linear(24, 8), nn.Tanh()).bfloat16()
    call = ProjectorCall(random(20, 1, 12).bfloat16(), lambda x: module(x[:, 0]), None)
    got = scored(tokens_with(call))
    full = copy.deepcopy(module).float()
    want = scored(tokens_with(ProjectorCall(call.inputs.float(), lambda x: full(x[:, 0]), None)))
    assert got.dtype == torch.float32
    assert spearman(got, want) > 0.98


@torch.inference_mode()
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_inside_generate(estimator):
    assert torch.isfinite(scored(example("layer"), estimator)).all()


def test_steps_follow_the_length_of_a_token():
    inputs = random(5, 4, 6) * torch.tensor([0, 1e-3, 1, 50, 4000])[:, None, None]
    steps = relative_steps(inputs, 0.01)
    assert steps[0] == 0.01
    assert torch.allclose(steps[1:], 0.01 * inputs.flatten(1).norm(dim=1)[1:])
    layers, function = projector("qwen")
    exact = forward_mode(function, inputs[1:], directions(64, 4, 6, 0))
    relative = scored(tokens_with(ProjectorCall(inputs[1:], function, layers)), "finite_difference")
    absolute = scored(tokens_with(ProjectorCall(inputs[1:], function, layers)), paper_compat=True)
    assert torch.allclose(relative, exact, rtol=2e-3)
    assert not torch.allclose(absolute[[0, 3]], exact[[0, 3]], rtol=2e-2)  # too large a step, and one lost in rounding


def test_low_rank_is_the_truncated_projector():
    layers, _ = projector("layer", h=20, out=18)
    inputs, bank = random(9, 4, 6), directions(32, 4, 6, 0)
    cut = low_rank(layers, 5)
    assert cut.second.weight.shape == (5, 20)
    assert torch.linalg.matrix_rank(cut.first.weight) == 5

    def truncated(weight):
        left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
        return (left[:, :5] @ torch.diag(values[:5]) @ right[:5]).float()

    first, second = nn.Linear(24, 20), nn.Linear(20, 18)
    first.weight.data, first.bias.data = truncated(layers.first.weight), layers.first.bias
    second.weight.data, second.bias.data = truncated(layers.second.weight), layers.second.bias
    plain = TwoLayers(layers.norm, layers.per_patch, first, layers.gelu, second)
    for score in (lambda m: closed_form(m, inputs, bank), lambda m: frobenius(m, inputs)):
        assert torch.allclose(score(fold(cut, 4)), score(fold(plain, 4)), rtol=1e-4)
    assert torch.allclose(
        closed_form(fold(low_rank(layers, 99), 4), inputs, bank), closed_form(fold(layers, 4), inputs, bank), rtol=1e-4
    )


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


def test_qwen_merger_group_by_group():
    torch.manual_seed(0)
    merger = Qwen2_5_VLPatchMerger(dim=16, context_dim=8).requires_grad_(False)
    layers = TwoLayers(merger.ln_q, True, merger.mlp[0], merger.mlp[1], merger.mlp[2])
    raster = random(12, 4, 8)

    def score(x, parts=None):
        call = ProjectorCall(x, lambda x: merger(x.flatten(0, 1)), parts)
        return scored(tokens_with(call), "closed_form" if parts else "jvp")

    want = torch.cat([score(group[None]) for group in raster])
    window = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(score(raster[window])[window.argsort()], want, rtol=1e-5)
    assert torch.allclose(score(raster, layers), want, rtol=1e-5)
    nudged = raster.clone()
    nudged[7, 2] += random(8, seed=2)
    changed = (score(nudged, layers) - want).abs() > 1e-4 * want
    assert changed.nonzero()[:, 0].tolist() == [7]


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


def test_parts_that_cannot_be_folded_are_refused():
    layers, _ = projector("qwen")
    with pytest.raises(ValueError, match="GroupNorm"):
        fold(dataclasses.replace(layers, norm=nn.GroupNorm(1, 6)), 4)
    packed = nn.Linear(24, 32).requires_grad_(False)
    packed.weight.data = packed.weight.data.to(torch.int8)
    with pytest.raises(ValueError, match="quantised"):
        fold(dataclasses.replace(layers, first=packed), 4)


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
