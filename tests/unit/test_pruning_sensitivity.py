"""Sensitivity of projectors: golden values, and its four estimators against each other."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPatchMerger

from tests.support.projectors import example, projector, random, scored, spearman, tokens_with
from vlmopt.pruning import Projector, ProjectorCall, TwoLayers
from vlmopt.pruning.sensitivity import (
    closed_form,
    directions,
    finite_difference,
    fold,
    forward_mode,
    frobenius,
    low_rank,
    relative_steps,
)
from vlmopt.pruning.zeroth_order import ESTIMATORS

FORMS = ["none", "layer", "layer_all", "plain_layer", "rms", "qwen", "eps"]


def test_golden_relu():
    x = torch.tensor([[[1.0, 1]], [[1, -1]], [[-1, -1]]])
    bank, want = torch.tensor([[[0.6, 0.8]]]), torch.tensor([1.0, 0.6, 0])
    relu = lambda x: x[:, 0].relu()  # noqa: E731
    assert torch.allclose(finite_difference(relu, x, bank, torch.full((3,), 0.01)), want, atol=1e-4)
    assert torch.allclose(forward_mode(relu, x, bank), want)


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


def test_what_ctrl_c_broke_off_is_computed_anew():
    """Products of h x h are kept for later calls: all of them or none."""
    tokens, third = example("rms"), Products(3)  # W2^T W2, then one product for each of the four patches
    with third, pytest.raises(KeyboardInterrupt):
        scored(tokens, "frobenius")
    assert torch.equal(scored(tokens, "frobenius"), scored(example("rms"), "frobenius"))


class Products(TorchFunctionMode):
    """Break off in the n-th product of two matrices of weights."""

    def __init__(self, last: int) -> None:
        self.left = last

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if "matmul" in function.__name__ and args[0].shape[0] == args[1].shape[1]:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", ["none", "qwen"])
def test_frobenius_ranks_like_many_directions(form):
    layers, function = projector(form, p=1, d=48, h=192, out=64)
    inputs = random(60, 1, 48, seed=5) * torch.linspace(0.5, 4, 60)[:, None, None]
    tokens = tokens_with(ProjectorCall(inputs, function, layers))
    mean, root = scored(tokens, "closed_form", directions=512), scored(tokens, "frobenius")
    assert spearman(mean, root) > 0.99
    assert (mean < root * 1.01).all()


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
    monkeypatch.setattr("vlmopt.pruning.sensitivity.ROWS", 300)
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


def test_parts_that_cannot_be_folded_are_refused():
    layers, _ = projector("qwen")
    with pytest.raises(ValueError, match="GroupNorm"):
        fold(dataclasses.replace(layers, norm=nn.GroupNorm(1, 6)), 4)
    packed = nn.Linear(24, 32).requires_grad_(False)
    packed.weight.data = packed.weight.data.to(torch.int8)
    with pytest.raises(ValueError, match="quantised"):
        fold(dataclasses.replace(layers, first=packed), 4)
