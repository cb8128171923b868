"""Read attention rows of the layer whose input is about to be cut, by running its own code up to its kernel.

The layer's norm, projections, q/k norms and rotation are the model's; nothing is re-derived. The pass stops inside the
attention function, before any kernel, feed-forward or cache write: it costs the layer's q, k and v projections.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlmopt.pruning import TEXT, AttentionRows

from ..call import PromptStep, Session
from ..compat import CACHE_NAMES
from ..context import VisualContext
from ..fitting import Fitting
from ..hooks.attention import plan_of
from ..points import LayerInput
from ..side_forward import side_forward
from .read_rows import Look, Looked, Reading, longest_question, reading
from .rows import AttentionRowsCapture


class Ahead(dict[int, Tensor]):
    """State of a step: layer -> rows read before its input was cut, fp32 [B, H, R, L] over logical indices."""


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


class LookAheadRowsCapture(AttentionRowsCapture):
    """Capture `LookAheadRows`: read at the boundary of the layer, not in the layer's own run."""

    state = Ahead

    def install(self, session: Session, need: AttentionRows) -> None:
        plan_of(session, need.layer)

    def before_cut(
        self, step: PromptStep, context: VisualContext, need: AttentionRows, at: LayerInput, fitting: Fitting
    ) -> None:
        """Run the layer on the rows so far, up to its kernel."""
        count, known = longest_question(step, context) if need.rows == TEXT else int(need.rows), step.slot(Ahead)
        if need.layer in known and known[need.layer].shape[2] >= count:
            return
        with step.call.ledger.timed(step.call.page.scoring):
            before = replace(at, given=dict(at.given))
            fitting.fit(step, before)
            known[need.layer] = look_ahead(before, reading(step, fitting.stage, count))


@torch.no_grad()
def look_ahead(at: LayerInput, of: Reading) -> Tensor:
    """Return rows fp32 [B, H, R, L] of a layer over logical indices."""
    given = at.given | {n: ReadOnlyCache(at.given[n]) for n in CACHE_NAMES if at.given.get(n) is not None}
    try:  # the instance's own forward, where accelerate loads weights and moves inputs
        side_forward(Look(at.layer, of), at.module.forward, at.handed, **given)
    except Looked as looked:
        return looked.rows
    raise RuntimeError(f"layer {at.layer} ran without its attention function")
