"""Which attention can be corrected, and why other attention cannot."""

from __future__ import annotations

from typing import Any

from vlmopt.attention_fix import Correction, Diagnosis

from ....policy import Policy
from ...captures import capture_of
from ...compat import layer_config
from ...hooks.attention import why_not as why_fixed
from ...structure import ModelStructure


def check_correction(model: Any, structure: ModelStructure, correction: Correction) -> None:
    """Refuse layers that cannot be corrected, and signals that cannot be had."""
    layers = sorted(correction.at(len(structure.layers)))
    if not layers:
        raise ValueError(
            f"{correction.name}: layers={correction.layers!r} names none of the {len(structure.layers)} layers of "
            f"{type(model).__name__}"
        )
    if isinstance(correction, Diagnosis):
        return  # listens outside attention
    reasons = [why_not(structure.attentions[layer]) for layer in layers]
    if None not in reasons:
        raise ValueError(
            f"{correction.name}: no layer of layers={correction.layers!r} can be corrected in {type(model).__name__}: "
            f"{'; '.join(sorted({str(reason) for reason in reasons}))}"
        )
    for need in sorted(correction.needs, key=repr):
        capture_of(need).check(model, structure, correction, need)


def by_layer(structure: ModelStructure, policy: Policy) -> dict[int, list[Correction]]:
    """Return the corrections that act in the attention of each layer, in the policy's order."""
    depth = len(structure.layers)
    editing = [(c, c.at(depth)) for c in policy.corrections if not isinstance(c, Diagnosis)]
    found = {layer: [c for c, layers in editing if layer in layers] for layer in range(depth)}
    return {layer: own for layer, own in found.items() if own and why_not(structure.attentions[layer]) is None}


def why_not(module: Any) -> str | None:
    """Return why attention of a module cannot be corrected, None if it can."""
    if (reason := why_fixed(module)) is not None:
        return reason
    q, heads = getattr(module, "q_proj", None), heads_of(module)
    if q is not None and hasattr(module, "head_dim") and q.out_features == 2 * heads * module.head_dim:
        return "its attention output is gated"
    return None


def heads_of(module: Any) -> int:
    return int(getattr(layer_config(module.config, module.layer_idx), "num_attention_heads", 0))
