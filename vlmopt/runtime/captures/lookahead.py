"""Attention rows of the layer whose input is about to be cut, by running the layer's own code up to its kernel.

The layer's norm, projections, q/k norms and rotation are the model's; nothing is re-derived. The pass stops inside the
attention function, before any kernel, feed-forward or cache write: it costs the layer's q, k and v projections.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..call import Step
from ..compat import CACHE_NAMES
from ..side_forward import Look, Looked


class Ahead(dict[int, Tensor]):
    """State of a step: layer -> rows read before its input was cut, fp32 [B, H, R, L] over logical places."""


class ReadOnlyCache:
    """What the layer sees of the cache: its keys so far, and an `update` that stores nothing."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        layers = self._cache.layers
        past = layers[layer_idx].keys if layer_idx < len(layers) else None
        if past is None or not past.numel():
            return key, value
        return torch.cat([past, key], 2), torch.cat([layers[layer_idx].values, value], 2)


@torch.no_grad()
def look_ahead(step: Step, module: nn.Module, layer: int, count: int, hidden: Tensor, given: dict[str, Any]) -> Tensor:
    """Rows fp32 [B, H, R, L] of `layer` over logical places, R = the last `count` real prompt rows."""
    given = dict(given)
    for name in CACHE_NAMES:
        if given.get(name) is not None:
            given[name] = ReadOnlyCache(given[name])
    step.side = Look(layer, count)
    try:
        module.forward(hidden, **given)  # the instance's own, where accelerate loads weights and moves inputs
    except Looked as looked:
        return looked.rows
    finally:
        step.side = None
    raise RuntimeError(f"layer {layer} ran without its attention function")
