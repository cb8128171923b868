"""Capture attention rows of the prompt, of a layer that has run."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlmopt.pruning import TEXT, AttentionRows, Selector

from ..call import PromptStep, Session, Step
from ..capture import Capture
from ..component import AttentionPart
from ..context import VisualContext
from ..hooks.attention import plan_of
from ..place import Place, text_places
from ..points import AttentionCall
from ..structure import ModelStructure
from .read_rows import longest_question, read_rows, reading


class RowsRead(dict[int, Tensor]):
    """State of a step: layer -> its last rows, fp32 [B, H, R, L] over logical indices."""


class RowReader(AttentionPart):
    """Read rows of one layer, once for all methods."""

    def __init__(self, stage: int) -> None:
        self.stage, self.rows = stage, 0
        self.text = False  # also the rows of the question

    def behind(self, step: Step, at: AttentionCall, out: Tensor) -> Tensor:
        """Record rows of a chunk with visual tokens."""
        if not isinstance(step, PromptStep) or step.context is None or step.fixed is not None or step.again:
            return out
        count = max(self.rows, longest_question(step, step.context)) if self.text else self.rows
        with step.call.ledger.timed(step.call.page.scoring):
            step.slot(RowsRead)[at.layer] = read_rows(reading(step, self.stage, count), at)
        return out


def reader_of(session: Session, layer: int) -> RowReader:
    """Return the reader of one layer, put in place once."""
    parts = plan_of(session, layer).parts
    found = next((part for part in parts if isinstance(part, RowReader)), None)
    if found is None:
        found = RowReader(session.stages.of(layer))
        parts.append(found)
    return found


class AttentionRowsCapture(Capture[AttentionRows]):
    """Capture `AttentionRows`."""

    of_question = True
    state: type[dict[int, Tensor]] = RowsRead

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
        reader = reader_of(session, need.layer)
        reader.text |= need.rows == TEXT
        reader.rows = max(reader.rows, 0 if need.rows == TEXT else int(need.rows))

    def missing(self, step: PromptStep, context: VisualContext, need: AttentionRows) -> str | None:
        if need.layer in step.slot(self.state):
            return None
        return f"no attention rows of layer {need.layer} in this step"

    def read(self, need: AttentionRows, at: Place) -> Tensor:
        scores = at.step.slot(self.state)[need.layer]
        rows = len(text_places(at)) if need.rows == TEXT else need.rows
        return scores[at.batch_row, :, max(scores.shape[2] - rows, 0) :][..., at.logical.to(scores.device)]
