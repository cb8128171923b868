"""Gradient checkpointing runs a layer again in the backward pass, where no step is open: the layer brings its own.

Hooks of a layer run outside of what is checkpointed, so a cut is made once. What runs again is the attention function:
it corrects the same rows by the same marks, and reads and books nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import transformers

from ..call import STEP, PromptStep, Session
from ..ledger import Ledger
from .stand_in import StandIn

NAME = "_gradient_checkpointing_func"  # set on every layer when a user enables checkpointing, before or after us


def install(session: Session) -> None:
    """Stand in for the checkpointing functions of the decoder's layers, where we do not yet."""
    for layer in session.structure.layers:
        found = vars(layer).get(NAME)
        if found is not None and not (isinstance(found, Checkpointed) and found.session is session):
            Checkpointed(session, layer, NAME).put()


class Checkpointed(StandIn):
    """`checkpoint(function, *args)` of one layer."""

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        step = self.session.running_step()
        if not isinstance(step, PromptStep):
            return self.original(function, *args, **kwargs)
        if self.session.stages.cuts and isinstance(function, partial) and inspect.ismethod(function.func):
            raise RuntimeError(
                f"transformers {transformers.__version__} checkpoints layers together with their hooks, so a cut would "
                "be made twice; upgrade transformers, or train without gradient checkpointing"
            )
        return self.original(Again(function, step), *args, **kwargs)


class Again:
    """A checkpointed function with the step of its first run."""

    def __init__(self, function: Callable[..., Any], step: PromptStep) -> None:
        self.function, self.ran = function, False
        call = replace(step.call, ledger=Ledger(step.call.ledger.clock))  # books nothing
        call.share(step.call)
        self.step = replace(step, again=True, call=call)
        self.step.share(step)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.ran:
            self.ran = True
            return self.function(*args, **kwargs)
        before = STEP.set(self.step)
        try:
            return self.function(*args, **kwargs)
        finally:
            STEP.reset(before)
