"""Touch point F: what enters the last linear layer of a feed-forward block, which is its gated activation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vlmopt.pruning import Activations

from .call import Session

LAST = ("down_proj", "w2")


def last_linear(layer: nn.Module) -> nn.Linear | None:
    """The one down projection of a decoder layer; None where there are several (experts) or none."""
    found = [
        m
        for name, m in layer.named_modules()
        if name.removesuffix(".base_layer").split(".")[-1] in LAST and isinstance(m, nn.Linear)  # PEFT wraps a linear
    ]
    return found[0] if len(found) == 1 else None


class Taken(dict[int, Tensor]):
    """State of a step: layer -> [B, W, m], until the cut behind it."""


class ActivationHook:
    """Forward pre-hook of the down projection: keeps a reference until the next cut, copies nothing."""

    def __init__(self, session: Session, layer: int) -> None:
        self.session, self.layer = session, layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        step = self.session.running_step()
        if step is not None and step.context is not None and not step.again:
            step.slot(Taken)[self.layer] = args[0].detach()


def install(session: Session, need: Activations) -> None:
    """Listen at the down projection of a layer that has one."""
    linear = last_linear(session.anatomy.layers[need.layer])
    assert linear is not None
    session.hook(linear.register_forward_pre_hook(ActivationHook(session, need.layer)))
