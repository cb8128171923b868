"""What cuts leave behind: for the report, and for what later layers do with the places that were written over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...context import Rows, VisualContext


@dataclass(frozen=True)
class Written:
    """Embeddings that a selector puts in the place of kept tokens of one sample."""

    batch_row: int  # of the batch
    places: Tensor  # Long[e], physical
    embeds: Tensor  # [e, d]


@dataclass(frozen=True)
class Answer:
    """What the selector said of one row of the batch; blank where it was shown nothing."""

    requested: int = 0
    scores: Tensor | None = None  # fp32 over the offered tokens
    stats: Mapping[str, Any] = field(default_factory=dict)
    origin: Tensor | None = None  # Long over the offered tokens: the one into which each was merged, or -1


@dataclass(frozen=True)
class Choice:
    """Decision at one boundary, over the physical rows [B, W] that arrive there."""

    content: Tensor  # Bool[B, W]: rows that stay (text always)
    dropped: Tensor  # Bool[B, W]: visual rows that leave, with those that the cut before left to this one
    span: Tensor  # Long[B, W]
    offered: Tensor | None  # Bool[B, W]: visual rows that the selector was shown; None where it could not run
    answers: list[Answer]  # per row of the batch
    written: list[Written]

    @property
    def changes(self) -> bool:
        """Whether anything leaves or is written over."""
        return bool(self.written) or bool(self.dropped.any())


class Choices(dict[int, Choice]):
    """State of a call that another follows: what was chosen in this pass, by the stage that begins with it."""


@dataclass(frozen=True)
class Following:
    """State of a call whose sequence drops the tokens that another dropped, and chooses nothing itself."""

    choices: Choices


@dataclass(frozen=True)
class Cut:
    """One selector's work on one prefill chunk."""

    chunk: int  # running number of the pruned prefill inside the call
    layer: int
    method: str
    keep: Tensor  # Bool[B, L] over logical indices: visual tokens that stay
    before: Tensor  # Bool[B, L]: visual tokens that were offered
    answers: list[Answer]  # per row of the batch
    markers: Tensor | None = None  # Bool[B, L] places overwritten by PosPad markers
    written: Tensor | None = None  # Bool[B, L] places that carry merged tokens


class Cuts(list[Cut]):
    """State of a page: every cut of the prompt, in order."""


@dataclass(eq=False)
class Overwritten:
    """State of a step: Bool[B, L] logical indices whose content is no longer what the model put there."""

    marker: Tensor | None = None  # overwritten by PosPad markers
    merged: Tensor | None = None  # carry merged tokens
    left: Tensor | None = None  # the next cut at this boundary has to drop them


def at_places(context: VisualContext, rows: Rows, table: Tensor) -> Tensor:
    """Return Bool[B, L] over logical indices from Bool[B, W] over physical rows; False where no row is."""
    return torch.zeros_like(context.visual).scatter(1, rows.log, table)
