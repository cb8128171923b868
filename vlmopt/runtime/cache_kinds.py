"""Facts about the caches of transformers: which can shrink, what their layers hold, and in how many bytes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .compat import unknown


def why_fixed(cache: Any, inside: bool = True) -> str | None:
    """Return why keys of this cache cannot leave, None if they can.

    Args:
        inside: some leave inside the language model, so that layers hold different numbers of keys.
    """
    kind = type(cache).__name__
    if inside and is_static(cache):
        return (
            f"static cache: the mask of {kind} is made once for all layers, and cuts inside the language model leave "
            "each another number of keys, so the call ran unpruned; cut before layer 0, or use a dynamic cache (the "
            "default)"
        )
    if is_static(cache) and any(is_whole(layer) and not counts(layer) for layer in getattr(cache, "layers", ())):
        return (
            f"static cache: the layers of {kind} are told by this release of transformers at which place of the whole "
            "sequence a key goes, so the call ran unpruned; upgrade transformers, or use a dynamic cache (the default)"
        )
    if cache is not None and not hasattr(cache, "layers"):
        return (
            f"{kind} keeps no object per layer, so the call ran unpruned; upgrade transformers or pass use_cache=False"
        )
    return None


def is_static(cache: Any) -> bool:
    """Return whether a cache has room for a fixed number of keys."""
    return bool(getattr(cache, "is_compileable", False)) or "Static" in type(cache).__name__


def static_room(cache: Any) -> int | None:
    """Return how many slots the layers of a static cache have; None where all of them are windows."""
    return max((layer.max_cache_len for layer in cache.layers if is_whole(layer)), default=None)


def counts(layer: Any) -> bool:
    """Return whether a layer of a static cache counts its keys itself; up to some release it went by positions."""
    return hasattr(layer, "cumulative_length")


def is_whole(layer: Any) -> bool:
    """Return whether a layer of a static cache keeps all keys."""
    return hasattr(layer, "max_cache_len") and not getattr(layer, "is_sliding", False)


def keys_returned(cache: Any, layer: int, rows: int) -> int:
    """Return how many key slots `layer` returns when it is handed `rows` more; of a static cache, empty ones too."""
    sizes = getattr(cache.layers[layer], "get_mask_sizes", None) if is_static(cache) else None
    if sizes is None:  # a recurrent layer, too
        return physical_past(cache, layer) + rows
    by_position = "cache_position" in inspect.signature(sizes).parameters  # up to 5.6
    length, _ = sizes(torch.arange(rows) if by_position else rows)
    return int(length)


def is_quantized(cache: Any) -> bool:
    """Return whether a cache packs its keys."""
    return any(hasattr(layer, "_quantized_keys") for layer in getattr(cache, "layers", ()))


def fill_quantized(layer: Any, keys: Tensor, values: Tensor) -> None:
    """Let a quantised layer hold these keys and values [B, Hk, n, D] as if they were the first it is handed."""
    layer.reset()
    layer.is_initialized, layer.cumulative_length = False, 0  # up to 5.22 a reset does not
    layer.update(keys, values)


def physical_past(cache: Any, layer: int, beyond: int = 0) -> int:
    """Return the keys that `layer` really holds and will return, in slots, but for the newest `beyond`."""
    layers = getattr(cache, "layers", ())
    held: Any = layers[layer] if layer < len(layers) else None
    if not hasattr(held, "get_mask_sizes"):  # of a recurrent layer
        if isinstance(getattr(held, "keys", None), Tensor):
            raise unknown(f"{type(held).__name__} of a cache holds keys and has no get_mask_sizes")
        return 0
    length = held.get_seq_length() - beyond
    window = getattr(held, "sliding_window", None)
    if window is not None and getattr(held, "is_sliding", False):  # it may record more than it returns
        length = min(length, window - 1)
    return max(int(length), 0)


def cache_bytes(cache: Any) -> int:
    """Return the bytes of all key and value tensors of `cache`."""
    return sum(layer_bytes(cache, i) for i in range(len(getattr(cache, "layers", ()))))


def layer_bytes(cache: Any, layer: int) -> int:
    """Return the bytes of the key and value tensors of one layer, packed ones among them."""
    names = ("keys", "values", "_quantized_keys", "_quantized_values")
    return sum(bytes_of(getattr(cache.layers[layer], name, None)) for name in names)


def bytes_of(held: Any) -> int:
    """Return the bytes of a tensor, of the parts of a packed one, or of all tensors in a container."""
    if held is None:
        return 0
    if type(held) is Tensor:  # asked for in every layer, when a forward ends
        return held.nbytes
    if isinstance(held, Mapping):
        held = tuple(held.values())
    if isinstance(held, (tuple, list)):
        return sum(map(bytes_of, held))
    if not isinstance(held, Tensor):
        return 0
    if not hasattr(held, "__tensor_flatten__"):
        return held.nbytes
    names, _ = held.__tensor_flatten__()
    return sum(bytes_of(getattr(held, name)) for name in names)
