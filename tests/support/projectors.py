"""Random projectors of every form, as their parts and as a function, and tokens that come out of them."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPatchMerger

from vlmopt.pruning import Projector, ProjectorCall, TwoLayers, VisualEmbeds, VisualTokens
from vlmopt.pruning.zeroth_order import ZeroOrder


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
