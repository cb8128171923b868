"""Can this policy work on this model? Asked before anything is changed; every answer "no" says what to do instead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from vlmopt.attention_fix import Correction, Diagnosis, Tower
from vlmopt.pruning import Selector, VisionAttention

from .families import family_of
from .policy import Policy
from .runtime import compat
from .runtime.captures import capture_of, described
from .runtime.components import tower_pruning
from .runtime.components.corrections import why_not
from .runtime.structure import ModelStructure, part, shared_key_source, structure_of, whole_blocks


def check(model: nn.Module, policy: Policy) -> tuple[ModelStructure, Policy]:
    """ModelStructure of `model` and the policy fitted to it, or `ValueError`/`TypeError` naming what does not fit."""
    compat.check_version()
    structure = structure_of(model)
    check_names(structure)
    implementation = compat.implementation(structure.config)
    if (policy.active or policy.corrections or policy.prefill) and implementation == "flex_attention":
        raise ValueError(
            "attn_implementation='flex_attention' is not supported: its block masks cannot be cut. "
            "Use 'sdpa', 'eager' or a flash implementation."
        )
    facts = model_facts(model, structure)
    for method in policy.active:
        check_selector(model, structure, method)
        method.check_model(facts)
    if policy.prefill is not None:
        policy.prefill.check_model(facts)
        if policy.prefill.dense_layers >= len(structure.layers):
            raise ValueError(
                f"prefill: dense_layers={policy.prefill.dense_layers} leaves none of the {len(structure.layers)} "
                f"layers of {type(model).__name__}; use fewer"
            )
    known = facts | {"whole_blocks": whole_blocks(model)}
    fitted = [c if c.neutral and c.idle is None else c.for_model(known) for c in policy.attention]
    policy = replace(policy, attention=fitted)
    for correction in policy.corrections:
        check_correction(model, structure, correction)
    return structure, policy


def check_names(structure: ModelStructure) -> None:
    """Raise `RuntimeError` where arguments have other names than on the releases of transformers that were tested."""
    for module, names in ((structure.outer, compat.OUTER), (structure.decoder, compat.DECODER)):
        compat.check_signature(type(module).forward, names, f"{type(module).__name__}.forward")
    for kind in {type(layer) for layer in structure.layers}:
        compat.check_signature(kind.forward, compat.layer_arguments(structure.decoder), f"{kind.__name__}.forward")


def model_facts(model: Any, structure: ModelStructure) -> dict[str, Any]:
    """What a calibration profile remembers of its model, and is compared with; a list where layers differ."""
    width = structure.config.hidden_size
    rows = []
    for layer in range(len(structure.layers)):
        config = compat.layer_config(structure.config, layer)
        heads = config.num_attention_heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        rows.append((heads, key_heads, getattr(config, "head_dim", None) or width // heads))
    shape = [values[0] if len(set(values)) == 1 else list(values) for values in zip(*rows, strict=True)]
    return {
        "model_type": model.config.model_type,
        "hidden_size": width,
        "layers": len(structure.layers),
        **dict(zip(("num_heads", "num_kv_heads", "head_dim"), shape, strict=True)),
        "name_or_path": model.config.name_or_path,
    }


def check_correction(model: nn.Module, structure: ModelStructure, correction: Correction) -> None:
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
        if isinstance(need, Tower):
            tower = VisionAttention(need.block)
            capture_of(tower).check(model, structure, correction, tower)


def check_selector(model: Any, structure: ModelStructure, method: Selector) -> None:
    depth, name = len(structure.layers), method.name
    if method.layer >= depth:
        raise ValueError(
            f"{name}: layer={method.layer} does not exist; {type(model).__name__} has layers 0..{depth - 1}"
        )
    shared = [s for i in range(depth) if (s := shared_key_source(structure.attentions, i)) is not None]
    if shared and method.layer > min(shared):
        raise ValueError(
            f"{name}: layer={method.layer} lies behind layer {min(shared)}, whose keys later layers of "
            f"{type(model).__name__} share; use layer <= {min(shared)}"
        )
    if method.numbering == "repack" and structure.mrope:
        raise ValueError(
            f"{method.renumbering} is undefined for the multi-axis positions of {type(model).__name__}; "
            "give positions='keep' or 'pospad'"
        )
    if method.numbering == "repack" and not hasattr(structure.decoder, "rotary_emb"):
        raise ValueError(
            f"{method.renumbering} needs a rotary position module; {type(structure.decoder).__name__} has none. "
            "Give positions='keep'."
        )
    if method.resizes_pixels and not family_of(model.config).patch_grid:
        raise ValueError(
            f"{name}: the vision tower of {model.config.model_type} takes one picture size, so resizing saves "
            f"no tokens; works with: {described(lambda f: f.patch_grid)}"
        )
    if method.before_tower:
        check_encoded(model, structure, method)
    for need in sorted(method.captures, key=repr):
        capture_of(need).check(model, structure, method, need)


def check_encoded(model: Any, structure: ModelStructure, method: Selector) -> None:
    family = family_of(model.config)
    if not family.patch_grid:
        raise ValueError(
            f"{method.name}: the vision tower of {model.config.model_type} takes whole pictures, so it cannot leave "
            f"out cells; works with: {described(lambda f: f.patch_grid)}. Use a selector before the LLM, e.g. div_prune"
        )
    if not family.image_std:
        raise ValueError(f"{method.name}: the image_std of {family.name} is not known; state it in vlmopt/families")
    if reason := tower_pruning.why_not(part(structure.outer, family.vision_tower)):
        raise ValueError(f"{method.name}: {reason}, so it cannot run on some of its patches; use div_prune")
