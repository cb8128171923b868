"""Attention rows of the prompt: of a layer that has run, or of the one that is about to be cut."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlmopt.pruning import TEXT, AttentionRows, Selector

from ..call import Session, Step
from ..hooks.attention import Probed, plan_of
from ..structure import ModelStructure
from .base import Capture
from .lookahead import Ahead
from .place import Place, text_places


class Rows(Capture[AttentionRows]):
    """`AttentionRows`."""

    of_question = True
    state: type[dict[int, Tensor]] = Probed

    def check(self, model: Any, structure: ModelStructure, method: Selector, need: AttentionRows) -> None:
        layer, attentions = need.layer, structure.attentions
        with_attention = [i for i, attention in enumerate(attentions) if attention is not None]
        if layer not in with_attention:
            raise ValueError(
                f"{method.name}: layer={method.layer} reads the attention of layer {layer}, which has none in "
                f"{type(model).__name__}; layers with attention: {with_attention}"
            )
        if not hasattr(attentions[layer], "config"):
            raise ValueError(
                f"{method.name}: {type(attentions[layer]).__name__} has its own attention code and cannot be read; "
                "use a selector without attention"
            )

    def install(self, session: Session, need: AttentionRows) -> None:
        plan = plan_of(session, need.layer)
        plan.text |= need.rows == TEXT
        plan.rows = max(plan.rows, 0 if need.rows == TEXT else int(need.rows))

    def missing(self, step: Step, need: AttentionRows) -> str | None:
        if need.layer in step.slot(self.state):
            return None
        return f"no attention rows of layer {need.layer} in this step"

    def read(self, need: AttentionRows, at: Place) -> Tensor:
        scores = at.step.slot(self.state)[need.layer]
        rows = len(text_places(at)) if need.rows == TEXT else need.rows
        return scores[at.row, :, max(scores.shape[2] - rows, 0) :][..., at.logical.to(scores.device)]


class RowsAhead(Rows):
    """`LookAheadRows`: started by the boundary of the layer, not by the layer's own run."""

    state = Ahead

    def install(self, session: Session, need: AttentionRows) -> None:
        plan_of(session, need.layer)
