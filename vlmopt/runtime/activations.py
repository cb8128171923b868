"""Touch point F: what enters the last linear layer of a feed-forward block, which is its gated activation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from .context import STEP

if TYPE_CHECKING:
    from .session import Session

LAST = ("down_proj", "w2")


def last_linear(layer: nn.Module) -> nn.Linear | None:
    """The one down projection of a decoder layer; None where there are several (experts) or none."""
    found = [
        m
        for name, m in layer.named_modules()
        if name.removesuffix(".base_layer").split(".")[-1] in LAST and isinstance(m, nn.Linear)  # PEFT wraps a linear
    ]
    return found[0] if len(found) == 1 else None


class ActivationHook:
    """Forward pre-hook of the down projection: keeps a reference until the next cut, copies nothing."""

    def __init__(self, session: Session, layer: int) -> None:
        self.session, self.layer = session, layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        step = STEP.get()
        if step is not None and step.owner is self.session and step.context is not None and not step.again:
            step.activations[self.layer] = args[0].detach()
