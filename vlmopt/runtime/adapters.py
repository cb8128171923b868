"""Modules that PEFT has changed: linear maps inside wrappers, and copies in place of whole modules."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..offload import resident

COPIES = {"modules_to_save": "original_module", "ln_tuning_layers": "base_layer"}  # and what they stand in for
LARGE = 2.0**12  # beside which a bias rounds nothing of a weight away


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear map, or the wrapper of one with adapters."""
    return isinstance(innermost(module), nn.Linear)


def innermost(module: nn.Module) -> nn.Module:
    """Return what adapters wrap, the module itself where there are none; some wrappers are linear layers as well."""
    inner = getattr(module, "base_layer", None)
    return innermost(inner) if isinstance(inner, nn.Module) else module


def running(module: Any) -> nn.Module:
    """Return what runs in place of a module: the copy that an adapter trained, where one is active."""
    for name, original in COPIES.items():
        copies = getattr(module, name, None)
        if isinstance(copies, nn.ModuleDict):
            off = module.disable_adapters or getattr(module, "merged", False)  # merged, it has changed places
            active = [] if off else [copies[adapter] for adapter in module.active_adapters if adapter in copies]
            return running(active[0] if active else getattr(module, original))
    found: nn.Module = module
    return found


def leaves(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts that compute, in their order; a linear map with its adapters is one."""
    module = running(module)
    children = [] if is_linear(module) else list(module.children())
    if not children:
        yield module
    for child in children:
        yield from leaves(child)


def merged(module: nn.Module, like: Tensor) -> nn.Module:
    """Return a module as it computes with its adapters merged and no dropout; itself where it has none.

    `like` has the dtype and the device of what enters. Nothing of the module is changed.
    """
    module = running(module)
    if is_linear(module):
        return module if innermost(module) is module else plain(still(module), like)
    children = {name: merged(child, like) for name, child in module.named_children()}
    if all(children[name] is child for name, child in module.named_children()):
        return module
    twin: nn.Module = copy.copy(resident(module))
    for name in ("forward", "_old_forward", "_hf_hook"):  # of accelerate, bound to the original
        twin.__dict__.pop(name, None)
    twin._modules = {**module._modules, **children}
    return twin


def still(module: nn.Module) -> nn.Module:
    """Return a module in evaluation mode, which shares its weights with the original."""
    twin = copy.copy(module)
    twin._modules = {name: child and still(child) for name, child in module._modules.items()}
    twin.training = False
    return twin


@torch.no_grad()
def plain(linear: nn.Module, like: Tensor) -> nn.Linear:
    """Return what a linear map, quantised or with adapters, does to unit vectors, as a layer of plain weights."""
    form: nn.Linear = innermost(linear)  # type: ignore[assignment]
    inputs = torch.cat([like.new_zeros(1, form.in_features), LARGE * torch.eye(form.in_features).to(like)])
    bias, columns = linear(inputs).split([1, form.in_features])
    twin = nn.Linear(form.in_features, form.out_features, device="meta")
    twin.weight, twin.bias = nn.Parameter((columns - bias).T / LARGE), nn.Parameter(bias[0])
    return twin
