"""Which layers can have a sparse prefill, and which back-ends can compute it: told by a plan made of random tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ....kernels.patterns import Prefill
from ....kernels.sparse_attention import plan_refusal
from ....offload import device_of
from ....prefill import SparsePrefill
from ...compat import head_shape, layer_config
from ...hooks.attention import why_not
from ...structure import ModelStructure

TEXT, SIDE = 64, 24  # tokens before and behind an image of SIDE x SIDE


def check_prefill(model: Any, structure: ModelStructure, method: SparsePrefill) -> None:
    """Raise `ValueError` where no layer can be sparse, or a pattern does not fit its heads, or a back-end cannot."""
    depth = len(structure.layers)
    if method.dense_layers >= depth:
        raise ValueError(
            f"prefill: dense_layers={method.dense_layers} leaves none of the {depth} layers of "
            f"{type(model).__name__}; use fewer"
        )
    reasons = [why_not(module) for module in structure.attentions[method.dense_layers :]]
    if None not in reasons:
        raise ValueError(
            f"prefill: no layer of {type(model).__name__} from layer {method.dense_layers} on can be sparse: "
            f"{'; '.join(sorted({str(reason) for reason in reasons}))}"
        )
    tried = set()
    for layer, module in enumerate(structure.attentions):
        shape = head_shape(structure.config, layer)
        groups = method.groups(layer, shape[0])
        key = shape, None if method.heads is None else method.heads.layers[layer]
        if not groups or why_not(module) is not None or key in tried:
            continue
        tried.add(key)
        for pattern, _ in groups:
            pattern.check_heads(shape[1])
        if method.backend == "auto" or method.is_identity:
            continue
        given = prompt_of(model, structure, layer)
        launches = [x for pattern, heads in groups for x in pattern.build(replace(given, heads=heads.to(given.device)))]
        if reason := plan_refusal(given, launches, return_lse=method.recall_rows > 0, backend=method.backend):
            raise ValueError(f"prefill: {reason}")


def prompt_of(model: Any, structure: ModelStructure, layer: int) -> Prefill:
    """Return the queries and keys of a layer for random tokens: text, one image, text."""
    heads, key_heads, width = head_shape(structure.config, layer)
    device, tokens, make = device_of(model), 2 * TEXT + SIDE * SIDE, torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, count, tokens, width, generator=make).to(device, structure.decoder.dtype)
        for count in (heads, key_heads, key_heads)
    )
    modality = torch.zeros(1, tokens, dtype=torch.long, device=device)
    modality[:, TEXT:-TEXT] = 1
    softcap = getattr(layer_config(structure.config, layer), "attn_logit_softcapping", None)
    every = torch.arange(heads, device=device)
    return Prefill(q, k, v, width**-0.5, softcap=softcap, heads=every, modality=modality, row=SIDE)
