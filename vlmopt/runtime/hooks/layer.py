"""Where hidden states enter a decoder layer: parts act on them, then the layer gets what matches the rows left."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from .. import compat
from ..call import DecodeStep, PromptStep, Session
from ..component import LayerPart
from ..fitting import Fitting, Now
from ..points import LayerInput
from ..unseen import Reached
from .compiled import passes


class LayerHook:
    """Forward pre-hook of one decoder layer."""

    def __init__(self, session: Session, layer: int) -> None:
        self.session, self.layer = session, layer
        self.parts: list[LayerPart] = []
        self.names = list(inspect.signature(type(session.structure.layers[layer]).forward).parameters)[1:]
        self.required = compat.layer_arguments(session.structure.decoder)
        self.fitting = Fitting(session, layer, session.stages.of(layer))

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if passes(self.session, kwargs, args[0] if args else kwargs.get("hidden_states")):
            return None
        step = self.session.running_step()
        if step is None or (isinstance(step, DecodeStep) and (step.fast or step.state is None)):
            return None
        step.slot(Now).stage = self.fitting.stage
        given = dict(zip(self.names, args, strict=False)) | kwargs  # some families pass positionally
        if isinstance(step, PromptStep):
            compat.require(self.required, given, f"decoder layer {self.layer}")
        at = LayerInput.of(self.layer, module, given.pop("hidden_states"), given, compat.cache_in(given))
        if isinstance(step, PromptStep):
            step.slot(Reached).parts.add(("layer", self.layer))
            for part in self.parts:
                part.at_layer(step, at)
            if step.context is None and step.state is None:
                return None
        fitted = self.fitting.fit(step, at)
        self.fitting.note(step, fitted, at.cache)
        if fitted.rows is None and step.state is None:
            return None
        return (at.handed,), at.given


class LayerHooks(dict[int, LayerHook]):
    """State of a session: the hooks in place."""


def entry_of(session: Session, layer: int) -> LayerHook:
    """Return the hook before a decoder layer, put in place once."""
    hooks = session.slot(LayerHooks)
    if layer not in hooks:
        hooks[layer] = LayerHook(session, layer)
        session.hook(session.structure.layers[layer].register_forward_pre_hook(hooks[layer], with_kwargs=True))
    return hooks[layer]
