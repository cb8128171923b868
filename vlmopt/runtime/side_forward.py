"""Run passes beside the sequence: the model's own code shows something once more, and nothing of it stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .call import STEP
from .points import SidePass

Result = TypeVar("Result")


def side_forward(beside: SidePass, forward: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Return what a forward of the decoder or of a layer returns below its hooks, in a pass of its own."""
    before = STEP.set(beside)
    try:
        return forward(*args, **kwargs)
    finally:
        STEP.reset(before)
