"""Find the parts of a loaded model structurally, not by a list of classes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..families import families, family_of
from ..families.refused import REFUSED
from .compat import layer_types, unknown

FEATURES = "get_image_features"
IMAGE_IDS = ("image_token_id", "image_token_index")
VIDEO_IDS = ("video_token_id", "video_token_index")
QUERIES = ("q_proj", "qkv_proj", "q_b_proj")  # the last: DeepSeek's, of low rank
DELIMITERS = re.compile(r"((vision|image|video)_(start|end|break|newline)|boi|eoi|bov|eov)(_token)?_(id|index)")


@dataclass(frozen=True, eq=False)
class ModelStructure:
    """Where things are in one model."""

    # transformers modules, whose attributes no type checker knows
    outer: Any  # merges visual features into the embeddings
    head: Any  # turns the outer model's output into logits; below wrappers such as PEFT's
    language_model: Any  # a model with a head of its own, by which the outer one reaches the decoder; None without
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
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind in REFUSED:
        raise ValueError(f"{type(model).__name__} {REFUSED[kind]}; {hint()}")
    decoder = next((m for m in model.modules() if is_decoder(m)), None)
    encoder = family_of(getattr(model, "config", None)).encoder
    outer = next((m for m in model.modules() if is_outer(m, encoder)), None)
    ids = visual_ids(model)
    reason = why_not(model, decoder, outer, ids)
    decoder = None if outer is None else decoder_in(outer)
    if outer is None or decoder is None or reason is not None:
        raise ValueError(f"{type(model).__name__} {reason}; {hint()}")
    layers: list[Any] = list(decoder.layers)  # type: ignore[arg-type]
    rope = getattr(decoder.config, "rope_parameters", None) or getattr(decoder.config, "rope_scaling", None) or {}
    return ModelStructure(
        outer=outer,
        head=next((m for m in model.modules() if any(child is outer for child in m.children())), outer),
        language_model=next((m for m in outer.modules() if m is not outer and has_head(m, decoder)), None),
        decoder=decoder,
        layers=layers,
        attentions=[attention_of(layer) for layer in layers],
        visual_ids=ids,
        delimiters=delimiters(model),
        layer_types=layer_types(decoder.config),
        mrope="mrope_section" in rope,
    )


def answering(model: nn.Module) -> nn.Module:
    """Return the part of a model that reads images and writes text; the model itself where it has no such part."""
    thinker: nn.Module | None = getattr(model, "thinker", None)
    if thinker is not None and callable(getattr(thinker, "generate", None)):
        return thinker
    return model.get_submodule("vlm") if embeds_rows(model) else model


def embeds_rows(model: nn.Module) -> bool:
    """Return whether a model turns every row of a `vlm` into an embedding for late interaction (ColPali, ColQwen2)."""
    return isinstance(getattr(model, "vlm", None), nn.Module) and hasattr(model, "embedding_proj_layer")


def is_decoder(module: nn.Module) -> bool:
    return isinstance(getattr(module, "layers", None), nn.ModuleList) and hasattr(module, "embed_tokens")


def is_outer(module: nn.Module, encoder: str = "") -> bool:
    """Return whether a module puts images into the prompt of a decoder that it holds, or, described so, lets it do."""
    if hasattr(module, FEATURES):
        return decoder_in(module) is not None
    return bool(encoder) and any(is_decoder(child) for child in module.children())


def has_head(module: nn.Module, decoder: nn.Module) -> bool:
    """Return whether a module is a language model around a decoder that can generate."""
    return callable(getattr(module, "generate", None)) and any(m is decoder for m in module.modules())


def decoder_in(module: nn.Module) -> nn.Module | None:
    """Return the decoder that a module holds, itself or in a language model with a head (Llama 4); None without one."""
    below = (child for child in module.children() if not hasattr(child, FEATURES))
    return next((m for child in below for m in child.modules() if is_decoder(m)), None)


def why_not(model: Any, decoder: Any, outer: Any, ids: dict[int, str]) -> str | None:
    """Return why a model cannot be optimized, as the end of a sentence; None if it can."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return (
            "is an encoder-decoder: images are read by its encoder, while visual tokens are dropped from the "
            "sequence that a decoder reads"
        )
    if decoder is None:
        return "has no language decoder (a module with `layers` and `embed_tokens`)"
    if outer is not None and not callable(getattr(model, "generate", None)) and not is_bare(model, outer):
        return "is not a model of transformers: it cannot generate and has no config of its own. Pass the whole model"
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


def is_bare(model: Any, outer: Any) -> bool:
    """Return whether a model is one without a language head, which gives hidden states."""
    return getattr(model, "config", None) is outer.config


def hint() -> str:
    return (
        f"load one of these families with AutoModelForImageTextToText: {', '.join(sorted(families()))}, or another "
        "that merges images into its prompt as they do (see CONTRIBUTING.md)"
    )


def attention_of(layer: nn.Module) -> nn.Module | None:
    return next(
        (c for c in layer.children() if hasattr(c, "layer_idx") and any(hasattr(c, name) for name in QUERIES)),
        None,
    )


def visual_ids(model: nn.Module) -> dict[int, str]:
    """Return placeholder ids by modality, from whatever name the config uses."""
    config = getattr(model, "config", None)
    ids: dict[int, str] = {}
    for owner in (config, getattr(config, "vision_config", None)):
        for modality, names in (("image", IMAGE_IDS), ("video", VIDEO_IDS)):
            for token in [getattr(owner, name, None) for name in names]:
                if token is not None:
                    ids.setdefault(int(token), modality)  # Molmo2 has one for both
        if ids:
            break
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


def is_window(structure: ModelStructure, layer: int) -> bool:
    """Return whether a layer sees the last keys only."""
    types = structure.layer_types
    if not types:
        return getattr(structure.config, "sliding_window", None) is not None
    return any(kind in types[layer] for kind in ("sliding", "chunk"))


def part(outer: Any, path: str) -> nn.Module:
    """Return the module at a family's path, which is written from the loaded model down.

    Raises:
        RuntimeError: it is not there, as on a release that keeps it elsewhere.
    """
    loaded = hasattr(outer, path.partition(".")[0])  # the outer model is the loaded one
    inside = path if loaded else path.removeprefix("model.")
    try:
        found: nn.Module = outer.get_submodule(inside)
        return found
    except AttributeError as error:
        raise unknown(f"{type(outer).__name__} has no {inside}") from error


def whole_blocks(model: Any) -> tuple[int, ...] | None:
    """Return the blocks of a vision tower with windows that see the whole image; None where all do."""
    blocks = getattr(getattr(model.config, "vision_config", None), "fullatt_block_indexes", None)
    return None if blocks is None else tuple(sorted(blocks))
