"""Capture what enters the last linear layer of a feed-forward block: its gated activation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vlmopt.pruning import Activations

from ...methods import Method
from ..adapters import is_linear
from ..call import PromptStep, Session
from ..capture import Capture
from ..compat import unknown
from ..context import VisualContext
from ..padding import prompt_text
from ..place import Place
from ..structure import ModelStructure

LAST = ("down_proj", "w2")


def last_linears(layer: nn.Module) -> list[nn.Module]:
    """Return the down projections of a decoder layer: one, or several where it has experts.

    Of one with adapters, the wrapper: some scale or turn what enters the linear map itself.
    """
    return [m for name, m in layer.named_modules() if name.split(".")[-1] in LAST and is_linear(m)]


class Taken(dict[int, Tensor]):
    """State of a step: layer -> [B, W, m], until the cut behind it."""


class ActivationHook:
    """Forward pre-hook of the down projection: keeps a reference until the next cut, copies nothing."""

    def __init__(self, session: Session, layer: int) -> None:
        self.session, self.layer = session, layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        step = self.session.running_step()
        if isinstance(step, PromptStep) and step.context is not None and not step.again:
            step.slot(Taken).setdefault(self.layer, args[0].detach())  # the wrapper is called before what it wraps


class ActivationsCapture(Capture[Activations]):
    """Capture `Activations`."""

    def check(self, model: Any, structure: ModelStructure, method: Method, need: Activations) -> None:
        if len(last_linears(structure.layers[need.layer])) != 1:
            raise ValueError(
                f"{method.name}: layer {need.layer} of {type(model).__name__} has no single gated feed-forward block "
                "(experts?), so its neurons cannot be counted; use a selector that reads attention or embeddings"
            )

    def install(self, session: Session, need: Activations) -> None:
        (linear,) = last_linears(session.structure.layers[need.layer])
        if not any(
            isinstance(hook, ActivationHook) and hook.session is session for hook in linear._forward_pre_hooks.values()
        ):
            session.hook(linear.register_forward_pre_hook(ActivationHook(session, need.layer)))

    def open_step(self, step: PromptStep, need: Activations) -> None:
        """Listen where adapters have come or gone, too."""
        self.install(step.call.session, need)

    def behind_cut(self, step: PromptStep, need: Activations) -> None:
        """Drop the reference."""
        step.slot(Taken).pop(need.layer, None)

    def missing(self, step: PromptStep, context: VisualContext, need: Activations) -> str | None:
        if need.layer not in step.slot(Taken):
            raise unknown(f"layer {need.layer} ran around the last linear map of its feed-forward block")
        return None

    def read(self, need: Activations, at: Place) -> Tensor:
        """Return rows of the layer before the cut."""
        values = at.step.slot(Taken)[need.layer]
        if need.of == "visual":
            return values[at.batch_row, at.physical.to(values.device)]
        text = prompt_text(at.step, at.context, at.batch_row)[at.rows.log[at.batch_row]]
        if at.rows.valid is not None:
            text = text & at.rows.valid[at.batch_row]
        return values[at.batch_row, text.to(values.device)]
