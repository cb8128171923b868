"""One query row over shared keys: heads of a group become rows of one head, so that keys are read once.

PyTorch's CPU kernel with `enable_gqa` reads a key once per query head. The numbers are the same up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ...offload import device_of
from ...policy import Policy
from ..call import Session, Step
from ..compat import implementation, layer_config
from ..component import AttentionPart, Component
from ..hooks.attention import plan_of, why_not
from ..points import AttentionCall
from ..structure import ModelStructure
from .corrections.check import heads_of

LEAST_KEYS = 4096  # below, little is won, and in half precision lost (docs/kv-cache.md)
LEAST_BYTES = 2**21  # of one head's keys: narrow heads and half precision need more of them
LEAST_WIDTH = 64  # of a head; of narrower ones nothing was measured


class GroupedLayer(AttentionPart):
    """The decoding attention of one layer."""

    def __init__(self, always: bool) -> None:
        self.always = always
        self.least_keys = 0 if always else LEAST_KEYS

    def compute(self, step: Step, at: AttentionCall) -> Tensor | None:
        """Return the layer's attention output [B, 1, H, D]; None where the kernel has to run."""
        query, key, value, options = at.query, at.key, at.value, at.options
        batch, heads, rows, _ = query.shape
        if rows != 1 or at.mask is not None or options.get("dropout") or at.softcap is not None:
            return None
        if options.get("position_bias") is not None or heads == key.shape[1]:
            return None
        if not self.always and not pays(key):
            return None
        grouped = query.reshape(batch, key.shape[1], -1, query.shape[3])
        out = scaled_dot_product_attention(grouped, key, value, scale=at.scaling)
        return out.reshape(batch, 1, heads, value.shape[3])


def pays(key: Tensor) -> bool:
    """Return whether grouped rows over these keys [B, Hk, n, D] can be expected to be faster than the kernel."""
    batch, heads, keys, width = key.shape
    long = keys >= LEAST_KEYS and width >= LEAST_WIDTH and keys * width * key.element_size() >= LEAST_BYTES
    return key.device.type == "cpu" and long and batch * heads >= torch.get_num_threads()  # a thread takes whole heads


class GroupedDecode(Component):
    """Give layers with grouped heads a kernel for one query row."""

    on_single_rows = False  # it leaves rows with a mask alone, and static caches have one

    @staticmethod
    def check(model: Any, structure: ModelStructure, policy: Policy) -> None:
        if policy.gqa != "grouped":
            return
        kernel = implementation(structure.config)
        if kernel != "sdpa":
            raise ValueError(f"gqa='grouped' stands in for attn_implementation='sdpa', and this model has {kernel!r}")
        if not grouped_layers(structure):
            raise ValueError(f"gqa='grouped': {type(model).__name__} has no heads that share keys; leave it at 'auto'")

    @classmethod
    def of(cls, session: Session) -> GroupedDecode | None:
        policy, config = session.policy, session.structure.config
        wanted = policy.gqa == "grouped"
        if policy.gqa == "auto" and policy.changes and implementation(config) == "sdpa":
            wanted = device_of(session.model).type == "cpu" and width_of(session.structure) >= LEAST_WIDTH
        return cls(session) if wanted else None

    def install(self) -> None:
        for layer in grouped_layers(self.session.structure):
            plan_of(self.session, layer).parts.append(GroupedLayer(self.session.policy.gqa == "grouped"))


def grouped_layers(structure: ModelStructure) -> list[int]:
    """Return the layers whose query heads share keys, and whose attention function can be replaced."""
    return [
        i
        for i, module in enumerate(structure.attentions)
        if why_not(module) is None and heads_of(module) != key_heads_of(module)
    ]


def key_heads_of(module: Any) -> int:
    config = layer_config(module.config, module.layer_idx)
    return int(getattr(config, "num_key_value_heads", None) or heads_of(module))


def width_of(structure: ModelStructure) -> int:
    """Return the width of a head."""
    return max(
        (int(getattr(module, "head_dim", 0)) for module in structure.attentions if module is not None), default=0
    )
