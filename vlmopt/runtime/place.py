"""Where a signal is read: the visual tokens of one sample at one boundary."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .call import Session, Step


@dataclass(frozen=True, eq=False)
class Place:
    """One sample's current visual tokens inside a step."""

    session: Session
    step: Step
    row: int
    physical: Tensor  # Long[n] rows of `hidden`
    logical: Tensor  # Long[n] offsets inside the chunk
    hidden: Tensor  # [B, W, d] at this boundary
