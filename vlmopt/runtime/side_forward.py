"""Passes beside the sequence: the model's own code runs once more for what it shows, and nothing of it stays.

A pass says in `Step.side` what it is run for; hooks of the sequence's own pass have nothing to do in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .call import STEP, Step


@dataclass(frozen=True)
class Look:
    """Stop inside the attention function of a layer, before its kernel, with its last rows."""

    layer: int
    count: int


class Looked(Exception):
    """Carries the rows out of the layer's forward."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows


@dataclass(frozen=True, eq=False)
class HeadOutputs:
    """Take down what heads make of one row of every sample."""

    rows: Tensor  # Long[B]
    found: dict[int, Tensor]  # layer -> [B, H, D]


def side_forward(step: Step, **arguments: Any) -> Any:
    """The decoder's output below its hooks, in a step of its own.

    Raises:
        Looked: a `Look` reached its layer.
    """
    before = STEP.get()
    STEP.set(step)
    try:
        return step.call.session.structure.decoder.forward(**arguments)
    finally:
        STEP.set(before)
