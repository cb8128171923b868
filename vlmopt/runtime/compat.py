"""Facts about transformers versions and cache kinds; nothing else in the package looks at a version."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor

FLOOR = "4.57.6"  # the lowest release on which the oracle tests pass
CACHE_NAMES = ("cache", "past_key_values", "past_key_value")  # from 5.24; up to 5.23; in layers of 4.57


def check_version() -> None:
    """Refuse releases below the floor: earlier caches keep no object per layer, or were never tested."""
    if Version(transformers.__version__) < Version(FLOOR):
        raise ValueError(
            f"transformers {transformers.__version__} is older than {FLOOR}, the lowest release whose results are "
            f"tested. Upgrade: pip install 'transformers>={FLOOR}'"
        )


def query_length(query: int | Tensor) -> int:
    """`get_mask_sizes` is handed a length, or up to 5.6 a tensor of cache positions."""
    return query.shape[0] if isinstance(query, Tensor) else query


def cache_name(forward: Callable[..., Any]) -> str:
    """Name under which `forward` takes the cache."""
    names = inspect.signature(forward).parameters
    return next(name for name in CACHE_NAMES if name in names)


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a call or in an output; callers may still use a name of before 5.24."""
    return next((arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None), None)


def why_fixed(cache: Any) -> str | None:
    """Why keys of this cache cannot have a length of their own per layer, None if they can."""
    kind = type(cache).__name__
    if getattr(cache, "is_compileable", False) or "Static" in kind:
        return f"static cache: {kind} cannot shrink, so the call ran unpruned; use a dynamic one (the default)"
    if cache is not None and not hasattr(cache, "layers"):
        return (
            f"{kind} keeps no object per layer, so the call ran unpruned; upgrade transformers or pass use_cache=False"
        )
    return None


def implementation(config: Any) -> str:
    """Name of the attention implementation, "eager" when unset."""
    return str(getattr(config, "_attn_implementation", None) or "eager")


def is_flash(config: Any) -> bool:
    return "flash" in implementation(config)


def layer_types(config: Any) -> list[str]:
    return list(getattr(config, "layer_types", None) or [])


def layer_config(config: Any, layer: int) -> Any:
    """What a config says of one decoder layer: heads and their width may differ, and then the whole says nothing."""
    return config.per_layer_config[layer] if getattr(config, "is_heterogeneous", False) else config


RECURRENT = ("linear_attention", "conv")


def physical_past(cache: Any, layer: int) -> int:
    """Keys that `layer` really holds and will return, in slots; 0 for recurrent layers and empty caches."""
    layers = getattr(cache, "layers", ())
    if layer >= len(layers) or not hasattr(layers[layer], "get_mask_sizes"):
        return 0
    length = layers[layer].get_seq_length()
    window = getattr(layers[layer], "sliding_window", None)
    if window is not None and getattr(layers[layer], "is_sliding", False):  # it may record more than it returns
        length = min(length, window - 1)
    return int(length)


def cache_bytes(cache: Any) -> int:
    """Bytes of all key and value tensors of `cache`."""
    tensors = [getattr(layer, name, None) for layer in getattr(cache, "layers", ()) for name in ("keys", "values")]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
