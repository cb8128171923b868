"""Show queries, keys and values of every layer of a prompt, one layer at a time, while the model runs as it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..api import optimized, report
from ..kernels.patterns import AShape, Prefill
from ..policy import Policy
from ..prefill import SparsePrefill
from ..prompt import placed_for
from ..runtime.call import PromptStep, Step
from ..runtime.components.sparse_prefill import SparseLayer
from ..runtime.hooks.attention import plan_of
from ..runtime.points import AttentionCall
from ..runtime.session import session_in


@dataclass(frozen=True, eq=False)
class Shown:
    """One layer's prefill."""

    layer: int
    prefill: Prefill  # of all query heads


class Watcher(SparseLayer):
    """Stand in the place of a layer's sparse prefill: show it, and leave the layer dense."""

    show: Callable[[Shown], None]

    def compute(self, step: Step, at: AttentionCall) -> None:
        """Show a layer whose padding is known."""
        if not isinstance(step, PromptStep):
            return
        layout = self.layout(step, at)
        if isinstance(layout, str):
            step.call.skip(f"layer {self.layer}", layout)
            return
        self.show(Shown(self.layer, self.prefill(step, layout, at)))


@torch.inference_mode()
def watch(
    model: nn.Module, inputs: Mapping[str, Any], show: Callable[[Shown], None], dense_layers: int = 0
) -> list[str]:
    """Run a prompt through a model and call `show` in every layer from `dense_layers` on; results are the model's own.

    Returns:
        Why layers could not be shown, in words (sliding windows, masks that are not causal); empty if all could.

    Raises:
        ValueError: the model cannot be optimized at all, or has no layer number `dense_layers`.
    """
    method = SparsePrefill(pattern=AShape(), min_len=1, dense_layers=dense_layers)
    with optimized(model, Policy(prefill=method)):
        session = session_in(model)
        for layer, module in enumerate(session.structure.attentions):
            if hasattr(module, "_vlmopt_plan"):
                watcher, parts = Watcher(session, layer, method), plan_of(session, layer).parts
                watcher.show = show
                parts[:] = [watcher if isinstance(part, SparseLayer) else part for part in parts]
        few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        model(**placed_for(model, inputs), **few, use_cache=False)
        return sorted({entry["why"] for entry in report(model).skipped})
