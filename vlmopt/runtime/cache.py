"""The logical cache: it reports the length the sequence would have had, and stores each layer's own shorter keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from .cache_kinds import fill_quantized, static_room
from .compat import query_length
from .context import CacheState, Chunk, Lease
from .followed import FollowedCache, plain


class LogicalCache(FollowedCache):
    """Mixin in front of a transformers cache class. `_vlmopt` is the `CacheState` of this cache."""

    _vlmopt: CacheState

    def get_seq_length(self, layer_idx: int = 0) -> int:
        length: int = super().get_seq_length(layer_idx)  # type: ignore[misc]
        return length + self._vlmopt.dropped[self._attention_layer(layer_idx)]

    def _attention_layer(self, layer_idx: int) -> int:
        """Return the first attention layer of a hybrid cache that is asked about a recurrent one."""
        layers: list[Any] = self.layers  # type: ignore[attr-defined]
        if layer_idx >= len(layers) or hasattr(layers[layer_idx], "get_mask_sizes"):
            return layer_idx
        return next((i for i, layer in enumerate(layers) if hasattr(layer, "get_mask_sizes")), layer_idx)

    def get_mask_sizes(self, query: int | Tensor, layer_idx: int = 0) -> tuple[int, int]:
        """Return the full logical length, always; of a static cache, all that it will ever reach.

        Layers take the columns they need from a logical mask.
        """
        room = static_room(self)
        if room is not None:  # whole multiples of it, so that masks of many prompts have one shape
            return room - self._vlmopt.dropped[self._attention_layer(layer_idx)] // -room * room, 0
        return self.get_seq_length(layer_idx) + query_length(query), 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if not self._vlmopt.lease.alive:
            raise ValueError(
                "this past_key_values was filled by an optimized model that has since been restored or re-optimized; "
                "its keys lack the dropped tokens. Start from a fresh cache."
            )
        out = super().update(key_states, value_states, layer_idx, *args, **kwargs)  # type: ignore[misc]
        if self._vlmopt.pending:
            self._vlmopt.dropped[layer_idx] += self._vlmopt.pending.pop(layer_idx, 0)
        return out

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self._become_plain()

    def _become_plain(self) -> None:
        """Take the cache's own class back: what is empty serves any model."""
        del self._vlmopt
        self.__class__ = plain(type(self))

    def crop(self, max_length: int) -> None:
        """Remove the newest slots. Legal while they are text; a pruned prompt cannot be cut in the middle."""
        if max_length == 0:  # nothing to remove, but sliding layers that recorded their past return to their window
            super().crop(0)  # type: ignore[misc]
            if not super().get_seq_length():  # type: ignore[misc]  # older releases: crop to length 0
                self._become_plain()
            return
        relative = max_length - int(self.get_seq_length()) if max_length > 0 else max_length
        if relative >= 0:
            return
        state, length = self._vlmopt, int(self.get_seq_length()) + relative
        if length < state.tail:  # assisted decoding puts its candidates into the prefill
            state.crop(length)
        super().crop(relative)  # type: ignore[misc]  # negative = relative in every version


class LogicalDynamicCache(LogicalCache, DynamicCache):
    """The logical twin of `DynamicCache`; at module level, so that instances pickle."""


class LogicalStaticCache(LogicalCache, StaticCache):
    """The logical twin of `StaticCache`; of another class for every call, compiled steps would be compiled anew."""


TWINS = {DynamicCache: LogicalDynamicCache, StaticCache: LogicalStaticCache}


def keep_slots(cache: Any, layer: int, index: Tensor, unpacked: tuple[Tensor, Tensor] | None) -> None:
    """Drop all slots of a layer but `index` Long[B, 1|Hk, k].

    Args:
        unpacked: keys and values of a quantised layer as it attended to them; what stays is packed anew, by itself.
    """
    if getattr(cache, "offloading", False):  # copies from and to the device are under way
        torch.cuda.synchronize()
    held = cache.layers[layer]
    keys, values = unpacked or (held.keys, held.values)
    cache._vlmopt.dropped[layer] += keys.shape[2] - index.shape[2]
    kept = take_slots(keys, index), take_slots(values, index)
    if unpacked is None:
        held.keys, held.values = kept
    else:
        fill_quantized(held, *kept)


def take_slots(tensor: Tensor, index: Tensor) -> Tensor:
    """Gather slots `index` Long[B, 1|Hk, k] of [B, Hk, n, D]."""
    slots = index.to(tensor.device).expand(-1, tensor.shape[1], -1)
    return tensor.gather(2, slots[..., None].expand(*slots.shape, tensor.shape[3]))


@dataclass(eq=False)
class Moved:
    """State of a step under "repack": stage -> new positions Long[B, W], and the shift of later ones, Long[B]."""

    positions: dict[int, Tensor] = field(default_factory=dict)
    shift: dict[int, Tensor] = field(default_factory=dict)


def commit(chunk: Chunk, stages: int) -> None:
    """Append a chunk's surviving rows to what its cache remembers."""
    state = chunk.state
    if state is None:
        return
    columns = {store: chunk.columns(store) for store in {*range(1, stages + 1), *state.index}}
    for store, (index, valid) in columns.items():
        if index is not None:
            state.index[store], state.valid[store] = index, valid
    state.tail = chunk.past + chunk.q
    state.shift.update(chunk.slot(Moved).shift)


def adopted(chunk: Chunk, cache: Any, lease: Lease) -> CacheState:
    """Return the state of a chunk's cache, which becomes logical where it is not yet."""
    state = chunk.state
    if state is None:
        state = adopt(cache, lease)
        chunk.put(state)
    return state


def adopt(cache: Any, lease: Lease) -> CacheState:
    """Turn `cache` into its logical twin in place (once) and return its state."""
    if isinstance(cache, LogicalCache):
        return cache._vlmopt
    state, cls = CacheState(lease), plain(type(cache))
    cache.__class__ = TWINS.get(cls) or type(f"Logical{cls.__name__}", (LogicalCache, cls), {})
    cache._vlmopt = state
    return state
