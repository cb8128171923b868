"""Can this policy work on this model? Asked before anything is changed; every answer "no" says what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from vlmopt.attention_fix import Correction, Diagnosis, Tower
from vlmopt.pruning import (
    Activations,
    AttentionRows,
    FirstPassRows,
    LookAheadRows,
    Pixels,
    PixelScale,
    Projector,
    Selector,
    Signal,
    VisionAttention,
    VisionKeys,
)

from .families import Family, families, family_of
from .methods import Method
from .policy import Policy
from .runtime import compat, first_pass, offload, tower
from .runtime.activations import last_linear
from .runtime.corrections import why_not
from .runtime.discover import Anatomy, discover, shared_key_source
from .runtime.encoder import blocks_of, part


def check(model: nn.Module, policy: Policy) -> tuple[Anatomy, Policy]:
    """Anatomy of `model` and the policy fitted to it, or `ValueError`/`TypeError` naming what does not fit."""
    compat.check_version()
    anatomy = discover(model)
    check_names(anatomy)
    implementation = compat.implementation(anatomy.config)
    if (policy.active or policy.corrections or policy.prefill) and implementation == "flex_attention":
        raise ValueError(
            "attn_implementation='flex_attention' is not supported: its block masks cannot be cut. "
            "Use 'sdpa', 'eager' or a flash implementation."
        )
    facts = model_facts(model, anatomy)
    for method in policy.active:
        check_selector(model, anatomy, method)
        method.check_model(facts)
    if policy.prefill is not None:
        policy.prefill.check_model(facts)
        if policy.prefill.dense_layers >= len(anatomy.layers):
            raise ValueError(
                f"prefill: dense_layers={policy.prefill.dense_layers} leaves none of the {len(anatomy.layers)} layers "
                f"of {type(model).__name__}; use fewer"
            )
    known = facts | {"whole_blocks": whole_blocks(model)}
    fitted = [c if c.neutral and c.idle is None else c.for_model(known) for c in policy.attention]
    policy = replace(policy, attention=fitted)
    for correction in policy.corrections:
        check_correction(model, anatomy, correction)
    return anatomy, policy


def check_names(anatomy: Anatomy) -> None:
    """Raise `RuntimeError` where arguments have other names than on the releases of transformers that were tested."""
    for module, names in ((anatomy.outer, compat.OUTER), (anatomy.decoder, compat.DECODER)):
        compat.check_signature(type(module).forward, names, f"{type(module).__name__}.forward")
    for kind in {type(layer) for layer in anatomy.layers}:
        compat.check_signature(kind.forward, compat.layer_arguments(anatomy.decoder), f"{kind.__name__}.forward")


def model_facts(model: Any, anatomy: Anatomy) -> dict[str, Any]:
    """What a calibration profile remembers of its model, and is compared with; a list where layers differ."""
    width = anatomy.config.hidden_size
    rows = []
    for layer in range(len(anatomy.layers)):
        config = compat.layer_config(anatomy.config, layer)
        heads = config.num_attention_heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        rows.append((heads, key_heads, getattr(config, "head_dim", None) or width // heads))
    shape = [values[0] if len(set(values)) == 1 else list(values) for values in zip(*rows, strict=True)]
    return {
        "model_type": model.config.model_type,
        "hidden_size": width,
        "layers": len(anatomy.layers),
        **dict(zip(("num_heads", "num_kv_heads", "head_dim"), shape, strict=True)),
        "name_or_path": model.config.name_or_path,
    }


def whole_blocks(model: Any) -> tuple[int, ...] | None:
    """Blocks of a vision tower with windows that see the whole picture; None where all do."""
    blocks = getattr(getattr(model.config, "vision_config", None), "fullatt_block_indexes", None)
    return None if blocks is None else tuple(sorted(blocks))


def check_correction(model: nn.Module, anatomy: Anatomy, correction: Correction) -> None:
    layers = sorted(correction.at(len(anatomy.layers)))
    if not layers:
        raise ValueError(
            f"{correction.name}: layers={correction.layers!r} names none of the {len(anatomy.layers)} layers of "
            f"{type(model).__name__}"
        )
    if isinstance(correction, Diagnosis):
        return  # listens outside attention
    reasons = [why_not(anatomy.attentions[layer]) for layer in layers]
    if None not in reasons:
        raise ValueError(
            f"{correction.name}: no layer of layers={correction.layers!r} can be corrected in {type(model).__name__}: "
            f"{'; '.join(sorted({str(reason) for reason in reasons}))}"
        )
    for need in sorted(correction.needs, key=repr):
        if isinstance(need, Tower):
            check_tower(model, anatomy, correction, VisionAttention(need.block))


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
    if method.numbering == "repack" and anatomy.mrope:
        raise ValueError(
            f"{method.renumbering} is undefined for the multi-axis positions of {type(model).__name__}; "
            "give positions='keep' or 'pospad'"
        )
    if method.numbering == "repack" and not hasattr(anatomy.decoder, "rotary_emb"):
        raise ValueError(
            f"{method.renumbering} needs a rotary position module; {type(anatomy.decoder).__name__} has none. "
            "Give positions='keep'."
        )
    if method.resizes_pixels and not family_of(model.config).patch_grid:
        raise ValueError(
            f"{name}: the vision tower of {model.config.model_type} takes one picture size, so resizing saves "
            f"no tokens; works with: {described(lambda f: f.patch_grid)}"
        )
    if method.before_tower:
        check_encoded(model, anatomy, method)
    for need in sorted(method.captures, key=repr):
        CHECKS.get(type(need), nothing_to_check)(model, anatomy, method, need)


def check_encoded(model: Any, anatomy: Anatomy, method: Selector) -> None:
    family = family_of(model.config)
    if not family.patch_grid:
        raise ValueError(
            f"{method.name}: the vision tower of {model.config.model_type} takes whole pictures, so it cannot leave "
            f"out cells; works with: {described(lambda f: f.patch_grid)}. Use a selector before the LLM, e.g. div_prune"
        )
    if not family.image_std:
        raise ValueError(f"{method.name}: the image_std of {family.name} is not known; state it in vlmopt/families")
    if reason := tower.why_not(part(anatomy.outer, family.vision_tower)):
        raise ValueError(f"{method.name}: {reason}, so it cannot run on some of its patches; use div_prune")


def nothing_to_check(model: nn.Module, anatomy: Anatomy, method: Selector, need: Any) -> None:
    """Embeddings and hidden states exist in every model."""


def check_attention_layer(model: nn.Module, anatomy: Anatomy, method: Selector, need: AttentionRows) -> None:
    layer = need.layer
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


def check_first_pass(model: nn.Module, anatomy: Anatomy, method: Selector, need: FirstPassRows) -> None:
    """Grids are known at run time only; the report says where a picture had none."""
    layer = first_pass.layer_of(anatomy, need)
    with_attention = [i for i, attention in enumerate(anatomy.attentions) if hasattr(attention, "config")]
    if layer not in with_attention:
        raise ValueError(
            f"{method.name}: layer {layer} of {type(model).__name__} has no attention to read in a first pass; "
            f"layers that have: {with_attention or 'none; use instruction_similarity'}"
        )


def check_activations(model: nn.Module, anatomy: Anatomy, method: Selector, need: Activations) -> None:
    if last_linear(anatomy.layers[need.layer]) is None:
        raise ValueError(
            f"{method.name}: layer {need.layer} of {type(model).__name__} has no single gated feed-forward block "
            "(experts?), so its neurons cannot be counted; use a selector that reads attention or embeddings"
        )


def check_projector(model: Any, anatomy: Anatomy, method: Method, need: Any) -> None:
    if not family_of(model.config).by_token:
        raise ValueError(
            f"{method.name}: in {model.config.model_type} visual tokens are no rows of a projector's output "
            f"(pooled, scaled or undescribed); works with: {described(lambda f: f.by_token)}. "
            "Use a selector that reads embeddings, e.g. div_prune"
        )
    if reason := offload.why_unreadable(part(anatomy.outer, family_of(model.config).projector)):
        raise ValueError(f"{method.name}: {reason}; load the model's weights first")


def check_tower(model: Any, anatomy: Anatomy, method: Method, need: VisionAttention | VisionKeys) -> None:
    check_projector(model, anatomy, method, need)
    tower = part(anatomy.outer, family_of(model.config).vision_tower)
    depth = len(blocks_of(tower))
    if not -depth <= need.layer < depth:
        raise ValueError(
            f"{method.name}: block {need.layer} of the vision tower cannot be read; {type(tower).__name__} has "
            f"{f'blocks {-depth}..{depth - 1}' if depth else 'no attention blocks'}"
        )
    whole = whole_blocks(model)
    if whole is not None and need.layer % depth not in whole:
        raise ValueError(
            f"{method.name}: block {need.layer} of {type(tower).__name__} attends inside small windows only; "
            f"blocks that see the whole picture: {', '.join(str(i) for i in whole)} of {depth}"
        )


def check_pixels(model: Any, anatomy: Anatomy, method: Selector, need: Pixels) -> None:
    if family_of(model.config).cells is None:
        padded = method.padding != "keep"
        what = f"padding={method.padding!r}" if padded else "the method"
        way_out = "padding='keep'" if padded else "a selector that reads embeddings, e.g. div_prune"
        raise ValueError(
            f"{method.name}: {what} needs the pixels under every token, which are not known for "
            f"{model.config.model_type}; works with: {described(lambda f: f.cells is not None)}. Use {way_out}"
        )


def check_pixel_scale(model: Any, anatomy: Anatomy, method: Selector, need: PixelScale) -> None:
    if not family_of(model.config).image_std:
        raise ValueError(
            f"{method.name}: by what the processor of {model.config.model_type} divides pixels is not known; works "
            f"with: {described(lambda f: bool(f.image_std))}. Use a selector that reads embeddings, e.g. div_prune"
        )


def described(able: Callable[[Family], bool]) -> str:
    return ", ".join(sorted(f.name for f in families().values() if able(f)))


CHECKS: dict[type[Signal], Callable[[Any, Anatomy, Selector, Any], None]] = {
    AttentionRows: check_attention_layer,
    LookAheadRows: check_attention_layer,
    FirstPassRows: check_first_pass,
    Activations: check_activations,
    Projector: check_projector,
    VisionAttention: check_tower,
    VisionKeys: check_tower,
    Pixels: check_pixels,
    PixelScale: check_pixel_scale,
}
