"""Can this policy work on this model? Asked before anything is changed; every answer "no" says what to do instead."""

from __future__ import annotations

from typing import Any

from torch import nn

from pruning import Selector
from pruning.base import AttentionRows

from .families import families, family_of
from .policy import Policy
from .seam import compat
from .seam.discover import Anatomy, discover, shared_key_source


def check(model: nn.Module, policy: Policy) -> Anatomy:
    """Anatomy of `model`, or `ValueError`/`TypeError` naming what does not fit."""
    compat.check_version()
    anatomy = discover(model)
    implementation = compat.implementation(anatomy.config)
    if policy.active and implementation == "flex_attention":
        raise ValueError(
            "attn_implementation='flex_attention' is not supported: its block masks cannot be cut. "
            "Use 'sdpa', 'eager' or a flash implementation."
        )
    if policy.attention:
        names = ", ".join(method.name for method in policy.attention)
        raise ValueError(f"attention={names}: this release installs no corrections yet; leave attention empty")
    for method in policy.active:
        check_selector(model, anatomy, method)
    return anatomy


def check_selector(model: Any, anatomy: Anatomy, method: Selector) -> None:
    depth, name = len(anatomy.layers), method.name
    if method.layer >= depth:
        raise ValueError(
            f"{name}: layer={method.layer} does not exist; {type(model).__name__} has layers 0..{depth - 1}"
        )
    shared = [s for i in range(depth) if (s := shared_key_source(anatomy.attentions, i)) is not None]
    if shared and method.layer > min(shared):
        raise ValueError(
            f"{name}: layer={method.layer} lies behind layer {min(shared)}, whose keys later layers of "
            f"{type(model).__name__} share; use layer <= {min(shared)}"
        )
    if method.positions == "repack" and anatomy.mrope:
        raise ValueError(
            f"{name}: positions='repack' is undefined for the multi-axis positions of {type(model).__name__}; "
            "use 'keep' or 'pospad'"
        )
    if method.positions == "repack" and not hasattr(anatomy.decoder, "rotary_emb"):
        raise ValueError(
            f"{name}: positions='repack' needs a rotary position module; {type(anatomy.decoder).__name__} has none. "
            "Use 'keep'."
        )
    if method.resizes_pixels and not family_of(model.config).patch_grid:
        able = sorted(f.name for f in families().values() if f.patch_grid)
        raise ValueError(
            f"{name}: the vision tower of {model.config.model_type} takes one picture size, so resizing saves "
            f"no tokens; works with: {', '.join(able)}"
        )
    for need in method.needs:
        if isinstance(need, AttentionRows):
            check_attention_layer(model, anatomy, method, need.layer)


def check_attention_layer(model: nn.Module, anatomy: Anatomy, method: Selector, layer: int) -> None:
    with_attention = [i for i, attention in enumerate(anatomy.attentions) if attention is not None]
    if layer not in with_attention:
        raise ValueError(
            f"{method.name}: layer={method.layer} reads the attention of layer {layer}, which has none in "
            f"{type(model).__name__}; layers with attention: {with_attention}"
        )
    if not hasattr(anatomy.attentions[layer], "config"):
        raise ValueError(
            f"{method.name}: {type(anatomy.attentions[layer]).__name__} has its own attention code and cannot be read; "
            "use a selector without attention"
        )
