"""Measure where the attention of a prompt's text goes, by layer: sinks, the rest of the image, text; also as corrected.

The split is that of See What You Are Told: Visual Attention Sink in Large Multimodal Models (arXiv 2503.03321).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlmopt.attention_fix import RowCorrection, RowView, VisualSink
from vlmopt.attention_fix.base import no_rows
from vlmopt.core import Signal

from ..api import optimized
from ..offload import device_of
from ..policy import Policy

KINDS = ("visual_sinks", "other_visual", "text_sinks", "other_text")


@dataclass
class Sums:
    """Shares of one layer, summed over (row, head) pairs, by `KINDS`, before the edit and after."""

    before: Tensor = field(default_factory=lambda: torch.zeros(len(KINDS), dtype=torch.float64))
    after: Tensor = field(default_factory=lambda: torch.zeros(len(KINDS), dtype=torch.float64))
    pairs: int = 0
    edited: int = 0


@dataclass(frozen=True, kw_only=True)
class MassListener(RowCorrection):
    """Stand in for `visual_sink`: do what it does, and add up where attention lay before and after.

    With `apply` False nothing is edited; without `inner` nothing counts as a sink.
    """

    name = "attention masses"

    layers: str = "0:"
    inner: VisualSink | None = None
    apply: bool = True
    sums: dict[int, Sums] = field(default_factory=dict, hash=False)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset() if self.inner is None else self.inner.needs

    @property
    def is_identity(self) -> bool:
        return False

    def for_model(self, model: Mapping[str, Any]) -> MassListener:
        if self.inner is None:
            return self
        return replace(self, inner=self.inner.for_model(model))

    def mark(self, hidden: Tensor) -> dict[str, Tensor]:
        return {} if self.inner is None else self.inner.mark(hidden)

    def edit(self, values: Tensor, view: RowView) -> tuple[Tensor, Tensor]:
        edited, changed = values, no_rows(values)
        if self.inner is not None and self.apply:
            edited, changed = self.inner.edit(values, replace(view, sets=None))
        sink = view.marks.get("sink", torch.zeros_like(view.image))
        keys = torch.stack([view.image & sink, view.image & ~sink, ~view.image & sink, ~(view.image | sink)], 1)
        rows = view.rows[:, None].expand(changed.shape)
        sums = self.sums.setdefault(view.layer, Sums())
        after = torch.where(changed[..., None], edited, values)
        for name, weights in (("before", values), ("after", after)):
            shares = torch.einsum("bhrk,bnk->bhrn", weights, keys.to(weights.dtype))
            setattr(sums, name, getattr(sums, name) + shares[rows].double().sum(0).cpu())
        sums.pairs += int(rows.sum())
        sums.edited += int((changed & rows).sum())
        return edited, changed


@torch.inference_mode()
def attention_masses(
    model: nn.Module, inputs: Mapping[str, Any], policy: Any = None, *, sinks: VisualSink | None = None
) -> list[dict[str, Any]]:
    """Run a prompt and return where the attention of its text rows lies, as means over rows and heads.

    Args:
        model: a loaded vision-language model; it is given back as it came. inputs: what `model(**inputs)` takes.
        policy: what runs, anything `Policy.load` takes; its `visual_sink` is measured before and after the edit.
        sinks: what counts as a sink where the policy has no `visual_sink`; nothing does without it.

    Returns:
        Per layer {"layer", "before": {kind: share}, "after": the same or None where nothing corrects, "edited": share
        of (row, head) pairs that were changed}. The kinds are `KINDS`; their shares sum to 1.

    Raises:
        ValueError, TypeError: as `optimize`.
    """
    given = Policy.load(Policy() if policy is None else policy)
    own = next((c for c in given.attention if isinstance(c, VisualSink) and not c.is_identity), None)
    inner = own or (None if sinks is None or not sinks.needs else sinks)
    listener = MassListener(layers=own.layers if own else "0:", inner=inner, apply=own is not None)
    attention = [listener if c is own else c for c in given.attention] + ([] if own else [listener])
    device = device_of(model)
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    with optimized(model, replace(given, attention=attention)):
        model(**moved, use_cache=False)
    return [described(layer, sums, own is not None) for layer, sums in sorted(listener.sums.items()) if sums.pairs]


def described(layer: int, sums: Sums, corrected: bool) -> dict[str, Any]:
    before, after = ((sums.before / sums.pairs).tolist(), (sums.after / sums.pairs).tolist())
    return {
        "layer": layer,
        "before": dict(zip(KINDS, before, strict=True)),
        "after": dict(zip(KINDS, after, strict=True)) if corrected else None,
        "edited": sums.edited / sums.pairs,
    }
