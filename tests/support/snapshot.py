"""Everything that hangs on a model, by name and identity, to prove that nothing was left behind."""

from __future__ import annotations

from typing import Any

from torch import nn

REWRITTEN = {"rope_deltas"}  # transformers itself renews it on every call


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Per module: its class, the identity of every instance attribute, and the contents of every hook table."""
    out: dict[str, Any] = {}
    texts: dict[int, str] = {}  # many modules share a config, and writing one takes long
    for name, module in model.named_modules():
        out[name] = type(module)
        for key, value in vars(module).items():
            if key in REWRITTEN:
                continue
            out[f"{name}.{key}"] = value if isinstance(value, (bool, int, str)) else id(value)
            if isinstance(value, dict):
                out[f"{name}.{key}[]"] = [(k, id(v)) for k, v in value.items()]
        if hasattr(getattr(module, "config", None), "_attn_implementation"):
            config = module.config
            if id(config) not in texts:
                texts[id(config)] = str(config)
            out[f"{name}.config"] = (id(config), texts[id(config)], config._attn_implementation)
    return out


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return sorted(k for k in before.keys() | after.keys() if before.get(k, ...) != after.get(k, ...))
