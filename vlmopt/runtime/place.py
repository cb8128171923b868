"""Where a signal is read: the visual tokens of one sample at one boundary."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .call import PromptStep, Session
from .context import Rows, VisualContext
from .padding import prompt_text


@dataclass(frozen=True, eq=False)
class Place:
    """One sample's current visual tokens inside a step."""

    session: Session
    step: PromptStep
    context: VisualContext
    batch_row: int
    physical: Tensor  # Long[n] rows of `hidden`
    logical: Tensor  # Long[n] offsets inside the chunk
    rows: Rows  # that arrive at this boundary
    hidden: Tensor  # [B, W, d]


def text_places(at: Place) -> Tensor:
    """Return Long[R]: logical indices of the real prompt rows behind the sample's last visual token."""

    def behind() -> Tensor:
        text = prompt_text(at.step, at.context, at.batch_row).nonzero()[:, 0]
        return text[text > at.context.visual[at.batch_row].nonzero()[-1, 0]]

    return at.step.remember(("text", at.batch_row), None, behind)
