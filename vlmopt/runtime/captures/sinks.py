"""Capture which visual tokens are attention sinks where a layer's input is cut."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlmopt.attention_fix.secondary_sinks import like_first
from vlmopt.pruning import Sinks

from ..call import PromptStep
from ..capture import Capture
from ..context import VisualContext
from ..padding import real
from ..place import Place
from ..structure import ModelStructure


class SinksCapture(Capture[Sinks]):
    """Capture `Sinks`."""

    def check(self, model: Any, structure: ModelStructure, method: Any, need: Sinks) -> None:
        if method.layer < 1 or method.before_tower:
            raise ValueError(
                f"{method.name}: sinks='leave_out' at layer {method.layer}: attention sinks come to be inside the "
                "language model, and no layer has run yet; give a later layer, or sinks='keep'"
            )

    def missing(self, step: PromptStep, context: VisualContext, need: Sinks) -> str | None:
        return "the first token, which sinks are like, was in an earlier chunk of the prompt" if step.past else None

    def read(self, need: Sinks, at: Place) -> Tensor:
        row = at.batch_row
        hidden = at.hidden[row]
        valid = real(at.step)[row].to(hidden.device)[at.rows.log[row].to(hidden.device)]
        if at.rows.valid is not None:
            valid = valid & at.rows.valid[row].to(hidden.device)
        return like_first(hidden, valid)[at.physical.to(hidden.device)]
