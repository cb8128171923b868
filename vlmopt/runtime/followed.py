"""Caches whose samples are moved about, by beams or a loop that drops finished ones: what hangs on them moves along."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache


class PerSample(ABC):
    """What knows something of every sample of a batch."""

    @abstractmethod
    def map_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply a change of the first axis (reordering, repetition, choice) to everything that has one per sample."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.map_batch(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.map_batch(lambda t: t.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.map_batch(lambda t: t[indices.to(t.device)])


class FollowedCache:
    """Mixin in front of a transformers cache class."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        for held in followers(self):
            held.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        for held in followers(self):
            held.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        for held in followers(self):
            held.batch_select_indices(indices)


class FollowedDynamicCache(FollowedCache, DynamicCache):
    """The followed twin of `DynamicCache`; at module level, so that instances pickle."""


class FollowedStaticCache(FollowedCache, StaticCache):
    """The followed twin of `StaticCache`; of another class for every call, compiled steps would be compiled anew."""


TWINS = {DynamicCache: FollowedDynamicCache, StaticCache: FollowedStaticCache}


def followers(cache: Any) -> list[PerSample | Cache]:
    """Return what hangs on a cache and has a row per sample; the cache of a second stream among them."""
    return [held for held in vars(cache).values() if isinstance(held, (PerSample, Cache))]


def follow(cache: Any) -> None:
    """Let what hangs on `cache` go where its samples go, from now on."""
    cls = type(cache)
    if not issubclass(cls, FollowedCache):
        cache.__class__ = TWINS.get(cls) or type(f"Followed{cls.__name__}", (FollowedCache, cls), {})


def plain(cls: type) -> type:
    """Return the class that a cache had before it was followed."""
    return next(own for own in cls.__mro__ if not issubclass(own, FollowedCache))
