"""Weights that accelerate keeps on the host or on disk, and loads only while a module runs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

META = torch.device("meta")


def why_unreadable(module: nn.Module) -> str | None:
    """Return why weights of a module or below it cannot be read outside their forward, None if they can."""
    for part in module.modules():
        if any(p.device == META for p in part.parameters(recurse=False)) and not hasattr(part, "_hf_hook"):
            return f"weights of a {type(part).__name__} are on device meta, and no hook of accelerate holds them"
    return None


def resident(module: nn.Module) -> Any:
    """Return a module; where weights of its own, not of its children, are kept elsewhere, a copy that holds them.

    Raises:
        ValueError: they are nowhere.
    """
    if all(p.device != META for p in module.parameters(recurse=False)):
        return module
    if reason := why_unreadable(module):
        raise ValueError(f"{reason}; load the model's weights first")
    hook: Any = module._hf_hook
    hook.pre_forward(module)
    try:
        twin = copy.copy(module)
        twin._parameters = dict(module._parameters)  # the hook takes them out of the module's own table
        for name in ("forward", "_old_forward", "_hf_hook"):
            twin.__dict__.pop(name, None)
    finally:
        hook.post_forward(module, None)
    return twin


def device_of(model: nn.Module) -> torch.device:
    """Return where a model computes: the device of its first parameter, or the one it is loaded onto."""
    device = next(model.parameters()).device
    if device != META:
        return device
    hooks = (getattr(part, "_hf_hook", None) for part in model.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((d for d in devices if d is not None), META))
