"""Find the parts of a loaded model structurally, not by a list of classes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from .compat import layer_types, unknown

FEATURES = "get_image_features"
IMAGE_IDS = ("image_token_id", "image_token_index")
VIDEO_IDS = ("video_token_id", "video_token_index")
DELIMITERS = re.compile(r"((vision|image|video)_(start|end|break|newline)|boi|eoi|bov|eov)_token_(id|index)")


@dataclass
class ModelStructure:
    """Where things are in one model."""

    # transformers modules, whose attributes no type checker knows
    outer: Any  # merges visual features into the embeddings
    head: Any  # turns the outer model's output into logits; below wrappers such as PEFT's
    decoder: Any  # owns `layers` and `embed_tokens`
    layers: list[Any]
    attentions: list[Any]  # per layer; None for recurrent layers
    visual_ids: dict[int, str]  # token id -> "image" | "video"
    delimiters: frozenset[int]  # ids of tokens that frame images
    layer_types: list[str]
    mrope: bool

    @property
    def config(self) -> Any:
        return self.decoder.config


def structure_of(model: nn.Module) -> ModelStructure:
    """Find the parts of a vision-language model.

    Raises:
        TypeError: not a module. ValueError: why this one cannot be changed, and what can.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a loaded transformers model, got {type(model).__name__}")
    decoder = next((m for m in model.modules() if is_decoder(m)), None)
    outer = next((m for m in model.modules() if is_outer(m)), None)
    ids = visual_ids(model)
    reason = why_not(model, decoder, outer, ids)
    if outer is None or reason is not None:
        raise ValueError(f"{type(model).__name__} {reason}; {hint()}")
    decoder = next(child for child in outer.children() if is_decoder(child))
    layers: list[Any] = list(decoder.layers)  # type: ignore[arg-type]
    rope = getattr(decoder.config, "rope_parameters", None) or getattr(decoder.config, "rope_scaling", None) or {}
    return ModelStructure(
        outer=outer,
        head=next((m for m in model.modules() if any(child is outer for child in m.children())), outer),
        decoder=decoder,
        layers=layers,
        attentions=[attention_of(layer) for layer in layers],
        visual_ids=ids,
        delimiters=delimiters(model),
        layer_types=layer_types(decoder.config),
        mrope="mrope_section" in rope,
    )


def answering(model: nn.Module) -> nn.Module:
    """Return the part that reads images and writes text: the thinker of an Omni model, else the model itself."""
    thinker = getattr(model, "thinker", None)
    return cast("nn.Module", thinker) if callable(getattr(thinker, "generate", None)) else model


def is_decoder(module: nn.Module) -> bool:
    return isinstance(getattr(module, "layers", None), nn.ModuleList) and hasattr(module, "embed_tokens")


def is_outer(module: nn.Module) -> bool:
    """Return whether a module puts images into the prompt of a decoder that it holds."""
    return hasattr(module, FEATURES) and any(is_decoder(child) for child in module.children())


def why_not(model: Any, decoder: Any, outer: Any, ids: dict[int, str]) -> str | None:
    """Return why a model cannot be optimized, as the end of a sentence; None if it can."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return (
            "is an encoder-decoder: images are read by its encoder, while visual tokens are dropped from the "
            "sequence that a decoder reads"
        )
    if decoder is None:
        return "has no language decoder (a module with `layers` and `embed_tokens`)"
    if outer is not None and not callable(getattr(model, "generate", None)):
        return "cannot generate text: it is a part of a model or lacks its language head. Hand in the whole model"
    found = f"its decoder is {type(decoder).__name__}"
    if outer is None:
        owner = next((m for m in model.modules() if hasattr(m, FEATURES)), None)
        if owner is not None:
            return (
                f"is built in a way that is not supported: {found}, but `{FEATURES}` belongs to "
                f"{type(owner).__name__}, which does not hold that decoder itself"
            )
        if getattr(model.config, "vision_config", None) is not None:
            return (
                f"has no `{FEATURES}`, by which models put visual tokens into the prompt: {found}, and images reach "
                "it in another way, such as cross-attention"
            )
        return f"is not a vision-language model: {found}, but nothing in it has `{FEATURES}`"
    if not ids:
        return f"names no image token in its config ({' or '.join(IMAGE_IDS)}), so visual tokens cannot be told"
    return None


def hint() -> str:
    from ..families import families

    return (
        f"load one of these families with AutoModelForImageTextToText: {', '.join(sorted(families()))}, or another "
        "that merges images into its prompt as they do (see CONTRIBUTING.md)"
    )


def attention_of(layer: nn.Module) -> nn.Module | None:
    return next(
        (c for c in layer.children() if hasattr(c, "layer_idx") and (hasattr(c, "q_proj") or hasattr(c, "qkv_proj"))),
        None,
    )


def visual_ids(model: nn.Module) -> dict[int, str]:
    """Return placeholder ids by modality, from whatever name the config uses."""
    config = getattr(model, "config", None)
    ids: dict[int, str] = {}
    for modality, names in (("image", IMAGE_IDS), ("video", VIDEO_IDS)):
        for name in names:
            token = getattr(config, name, None)
            if token is not None:
                ids[int(token)] = modality
    return ids


def delimiters(model: nn.Module) -> frozenset[int]:
    """Return the ids of the tokens that frame images, as far as the config names them."""
    values = {name: value for name, value in vars(getattr(model, "config", None)).items() if DELIMITERS.fullmatch(name)}
    return frozenset(int(value) for value in values.values() if isinstance(value, int))


def shared_key_source(attentions: list[nn.Module | None], layer: int) -> int | None:
    """Return the layer whose keys `layer` reuses (KV sharing), None when it has its own."""
    attention = attentions[layer]
    if not getattr(attention, "is_kv_shared_layer", False):
        return None
    own = [
        i for i in range(layer) if attentions[i] is not None and not getattr(attentions[i], "is_kv_shared_layer", False)
    ]
    return max(i for i in own if getattr(attentions[i], "layer_type", None) == getattr(attention, "layer_type", None))


def part(outer: Any, path: str) -> nn.Module:
    """Return the module at a family's path, which is written from the loaded model down.

    Raises:
        RuntimeError: it is not there, as on a release that keeps it elsewhere.
    """
    inside = path.removeprefix("model.")
    try:
        return cast("nn.Module", outer.get_submodule(inside))
    except AttributeError as error:
        raise unknown(f"{type(outer).__name__} has no {inside}") from error


def whole_blocks(model: Any) -> tuple[int, ...] | None:
    """Return the blocks of a vision tower with windows that see the whole image; None where all do."""
    blocks = getattr(getattr(model.config, "vision_config", None), "fullatt_block_indexes", None)
    return None if blocks is None else tuple(sorted(blocks))
