"""What differs between releases of transformers: names, arguments, settings. Nothing else looks at a version."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import GenerationMixin

FLOOR = "4.57.6"  # the lowest release on which the oracle tests pass
NEWEST = "5.24.0"  # the highest
MASK_OF_IDS = "_prepare_attention_mask_for_generation"
CACHE_NAMES = ("cache", "past_key_values", "past_key_value")  # from 5.24; up to 5.23; in layers of 4.57
ENCODED = "mm_encoder_outputs"  # from 5.24 on `generate` encodes images before the first forward
ROTARY = ("position_embeddings", "position_embeddings_global")  # the second: gemma3 up to 4.57

# Arguments that every tested release has; of a tuple, one.
Names = tuple[str | tuple[str, ...], ...]
OUTER: Names = ("input_ids", "inputs_embeds", "attention_mask", ("pixel_values", "image_pixel_values"), CACHE_NAMES)
DECODER: Names = ("inputs_embeds", "attention_mask", "position_ids", CACHE_NAMES)
LAYER: Names = ("hidden_states", "attention_mask", CACHE_NAMES)
BLOCK: Names = ("cu_seqlens", "position_embeddings")
DEEPSTACK = ("visual_pos_masks", "deepstack_visual_embeds")
ATTENTION = ("query", "key", "value", "attention_mask")


def check_version() -> None:
    """Refuse releases below the floor: earlier caches keep no object per layer, or were never tested."""
    if Version(transformers.__version__) < Version(FLOOR):
        raise ValueError(
            f"transformers {transformers.__version__} is older than {FLOOR}, the lowest release whose results are "
            f"tested. Upgrade: pip install 'transformers>={FLOOR}'"
        )


def unknown(what: str) -> RuntimeError:
    """Make the error for a model that does not do what it does on every tested release."""
    return RuntimeError(
        f"transformers {transformers.__version__}: {what}. Tested are {FLOOR} to {NEWEST}: from another release, "
        f"change to one of these; on one of these, call restore(model) and report this"
    )


def require(names: Names, found: Collection[str], where: str) -> None:
    """Raise `RuntimeError` if one of `names` is not among the arguments `found`."""
    for name in names:
        choices = (name,) if isinstance(name, str) else name
        if not any(choice in found for choice in choices):
            raise unknown(f"{where} has no argument {' or '.join(choices)}, only {', '.join(found)}")


def check_signature(forward: Callable[..., Any], names: Names, where: str) -> None:
    """Raise `RuntimeError` if `forward` does not name its arguments as the tested releases do."""
    parameters = inspect.signature(forward).parameters
    if not any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):  # a wrapper that passes everything on
        require(names, list(parameters)[1:], where)


def check_mask_of_ids(model: nn.Module) -> None:
    """Raise `RuntimeError` if a model's `generate` does not tell padding by ids as on the tested releases."""
    if isinstance(model, GenerationMixin) and not hasattr(model, MASK_OF_IDS):
        raise unknown(f"{type(model).__name__} has no {MASK_OF_IDS}")


def layer_arguments(decoder: nn.Module) -> Names:
    """Return what every layer of `decoder` must be handed."""
    return (*LAYER, ROTARY) if hasattr(decoder, "rotary_emb") else LAYER


def every_row(given: dict[str, Any]) -> None:
    """Ask a decoder for all rows in all layers, in place; `generate` lets Gemma4 leave out rows that no logit needs.

    Its last layers take their keys from earlier ones, so from some release on they run for the last row alone.
    """
    if "logits_to_keep" in given:
        given["logits_to_keep"] = 0


def attention_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return query, key, value and mask of a call of the attention function, taken out of `kwargs` if they stand there.

    Raises:
        RuntimeError: one of them, or the scale that goes with them, has another name.
    """
    if len(args) == len(ATTENTION) and "scaling" in kwargs:  # as every tested release calls it, once a layer and token
        return args
    given = dict(zip(ATTENTION, args, strict=False)) | kwargs
    require((*ATTENTION, "scaling"), given, "the attention function")
    query, key, value, mask = (given[name] for name in ATTENTION)
    for name in ATTENTION:
        kwargs.pop(name, None)
    return query, key, value, mask


def substitute(config: Any, name: str) -> Any:
    """Return a shallow copy of an attention module's `config` that routes it through the attention function `name`."""
    clone = copy.copy(config)
    clone._attn_implementation_internal = name
    if implementation(clone) != name:
        raise unknown(f"{type(config).__name__} does not take its attention function from _attn_implementation")
    return clone


def query_length(query: int | Tensor) -> int:
    """Return the length of a query: `get_mask_sizes` is handed a length, or up to 5.6 a tensor of cache positions."""
    return query.shape[0] if isinstance(query, Tensor) else query


def cache_name(forward: Callable[..., Any]) -> str:
    """Return the name under which `forward` takes the cache."""
    names = inspect.signature(forward).parameters
    return next(name for name in CACHE_NAMES if name in names)


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """Return the cache among the arguments of a call or in an output; callers may still use a name of before 5.24."""
    return next((arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None), None)


def for_copies(model: Any, ids: Any, features: dict[str, Any], copies: int) -> dict[str, Any]:
    """Return encoded images, by modality, for a batch with so many rows per sample, as `generate` makes them.

    Args:
        ids: Long[B, L] of the prompts.
    """
    if copies == 1:
        return features
    expanded: dict[str, Any] = model._expand_multimodal_outputs(ids, features, expand_size=copies)
    return expanded


def of_chunk(model: Any, ids: Tensor, features: dict[str, Any], chunk: slice) -> dict[str, Any]:
    """Return the part of encoded images, by modality, that a chunk of a prompt is handed, as `generate` cuts them.

    Args:
        ids: Long[B, L] that are still to be read. chunk: which of their columns.
    """
    if ids[:, chunk].shape == ids.shape:
        return features
    from transformers.generation.utils import _slice_mm_encoder_output  # as young as chunks of prompts with images

    found = {}
    for modality, output in features.items():
        visual = ids == getattr(model.config, f"{modality}_token_id")
        rows = visual.flatten().cumsum(0).view_as(visual) - 1
        if visual[:, chunk].any():
            found[modality] = _slice_mm_encoder_output(output, rows[:, chunk][visual[:, chunk]])
    return found


def generation_setting(model: Any, given: Mapping[str, Any], name: str) -> Any:
    """Return a setting that a `generate` call goes by: an argument, or else of the config in it, or of the model's own.

    A config says nothing where it holds the default.
    """
    if name in given:
        return given[name]
    own, config = getattr(model, "generation_config", None), given.get("generation_config")
    silent = config is None or getattr(config, name, None) == getattr(type(config)(), name, None)
    return getattr(own if silent else config, name, None)


def ask_for_cache(model: Any, given: dict[str, Any]) -> None:
    """Let `generate` begin with its default cache, in place; on 5.0 alone it waits for the decoder to make one."""
    setting = partial(generation_setting, model, given)
    if Version(transformers.__version__).release[:2] != (5, 0) or cache_in(given) is not None:
        return
    own = setting("use_cache") is False or setting("cache_implementation") is not None
    if not own and model._supports_default_dynamic_cache():
        given["cache_implementation"] = "dynamic"


def implementation(config: Any) -> str:
    """Return the name of the attention implementation, "eager" when unset."""
    return str(getattr(config, "_attn_implementation", None) or "eager")


def is_flash(config: Any) -> bool:
    return "flash" in implementation(config)


def layer_types(config: Any) -> list[str]:
    return list(getattr(config, "layer_types", None) or [])


def layer_config(config: Any, layer: int) -> Any:
    """Return what a config says of one decoder layer; where layers differ, the whole says nothing."""
    return config.per_layer_config[layer] if getattr(config, "is_heterogeneous", False) else config


def head_shape(config: Any, layer: int) -> tuple[int, int, int]:
    """Return the query heads of a decoder layer, its key heads, and the channels of one."""
    own = layer_config(config, layer)
    heads = own.num_attention_heads
    key_heads = getattr(own, "num_key_value_heads", None) or heads
    return heads, key_heads, getattr(own, "head_dim", None) or config.hidden_size // heads


def ranks(*modules: Any) -> int:
    """Return the number of ranks that tensor parallelism has spread any of these modules over; 1 without."""
    return max(getattr(module, "tp_size", None) or 1 for module in modules)


RECURRENT = ("linear_attention", "conv")
