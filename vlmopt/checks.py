"""Check that a policy can work on a model, before anything is changed; every refusal says what to do instead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from vlmopt.pruning import AttentionRows, Signal
from vlmopt.pruning.signals import Activations, FirstPassRows, Projector, VisionAttention, VisionKeys

from .policy import Policy
from .runtime import compat
from .runtime.components.order import COMPONENTS
from .runtime.structure import ModelStructure, structure_of, whole_blocks

# What each rank has of its own under tensor parallelism.
OF_A_RANK: tuple[type[Signal], ...] = (
    AttentionRows, FirstPassRows, Activations, Projector, VisionAttention, VisionKeys,
)  # fmt: skip


def check(model: nn.Module, policy: Policy) -> tuple[ModelStructure, Policy]:
    """Return the structure of `model` and the policy fitted to it; raise `ValueError`/`TypeError` if it cannot fit."""
    compat.check_version()
    structure = structure_of(model)
    check_names(structure)
    implementation = compat.implementation(structure.config)
    if policy.changes and implementation == "flex_attention":
        raise ValueError(
            "attn_implementation='flex_attention' is not supported: its block masks cannot be cut. "
            "Use 'sdpa', 'eager' or a flash implementation."
        )
    check_ranks(model, structure, policy)
    facts = model_facts(model, structure)
    known = facts | {"whole_blocks": whole_blocks(model)}
    fitted = [c if c.is_identity and c.idle is None else c.for_model(known) for c in policy.attention]
    policy = replace(policy, attention=fitted)
    for part in (policy.prefill, policy.read):
        if part is not None:
            part.check_model(facts)
    for component in COMPONENTS:
        component.check(model, structure, policy)
    for method in policy.active:
        method.check_model(facts)
    return structure, policy


def check_ranks(model: Any, structure: ModelStructure, policy: Policy) -> None:
    """Refuse methods that read or edit heads or neurons on several ranks: each has others, and would choose by itself.

    Embeddings and hidden states are the same on all ranks, and so is what is chosen by them.
    """
    count = compat.ranks(model, structure.outer, structure.decoder)
    if count == 1:
        return
    own = [m for m in policy.active if any(isinstance(need, OF_A_RANK) for need in m.captures)]
    names = [method.label for method in own] + [method.name for method in policy.corrections]
    names += [] if policy.sparse is None else ["sparse prefill"]
    names += [] if policy.eviction is None else [policy.eviction.label]
    names += [] if policy.reading is None else ["sparse reading"]
    if names:
        raise ValueError(
            f"{', '.join(dict.fromkeys(names))}: {type(model).__name__} is spread over {count} ranks by tensor "
            "parallelism, each with heads and neurons of its own. Use selectors that read embeddings, which are the "
            "same on all (div_prune, dart, vidcom2, evs, uniform, random), or load the model on one rank"
        )


def check_names(structure: ModelStructure) -> None:
    """Raise `RuntimeError` where arguments have other names than on the releases of transformers that were tested."""
    outer = compat.OUTER if structure.language_model is None else compat.OUTER[:-1]  # which it may pass on as it comes
    for module, names in ((structure.outer, outer), (structure.decoder, compat.DECODER)):
        compat.check_signature(type(module).forward, names, f"{type(module).__name__}.forward")
    for kind in {type(layer) for layer in structure.layers}:
        compat.check_signature(kind.forward, compat.layer_arguments(structure.decoder), f"{kind.__name__}.forward")
    compat.check_mask_of_ids(structure.head)


def model_facts(model: Any, structure: ModelStructure) -> dict[str, Any]:
    """Return the facts by which a profile is compared with its model; a list where layers differ."""
    shapes = [compat.head_shape(structure.config, layer) for layer in range(len(structure.layers))]
    shape = [values[0] if len(set(values)) == 1 else list(values) for values in zip(*shapes, strict=True)]
    return {
        "model_type": model.config.model_type,
        "hidden_size": structure.config.hidden_size,
        "layers": len(structure.layers),
        **dict(zip(("num_heads", "num_kv_heads", "head_dim"), shape, strict=True)),
        "name_or_path": model.config.name_or_path,
    }
