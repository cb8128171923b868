"""In the attention: one function of ours, switched on per attention module by a shallow copy of its config.

The model's own config never changes, so mask creation, flash checks, `save_pretrained` and the
vision tower are untouched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from ..call import STEP, DecodeStep, PromptStep, Session, Step
from ..compat import attention_arguments, implementation, substitute
from ..component import AttentionPart
from ..masks import plain
from ..points import AttentionCall, SidePass
from ..unseen import Reached
from .compiled import idle

NAME = "vlmopt"
Attention: TypeAlias = Callable[..., tuple[Tensor, Tensor | None]]


def register(name: str, function: Callable[..., Any]) -> None:
    """Make an attention function known to transformers, once."""
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, function)


class BaseView:
    """The module as the base implementation should see it: same attributes, original config; made per call."""

    def __init__(self, module: nn.Module, config: Any) -> None:
        self.__dict__.update(_module=module, config=config)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class AttentionPlan:
    """One attention module that is routed through ours, and who acts in it."""

    def __init__(self, session: Session, layer: int, base: Any) -> None:
        register(NAME, vlmopt_attention)
        self.session, self.layer, self.base = session, layer, base
        self.parts: list[AttentionPart] = []

    def leaves(self, key: Tensor) -> bool:
        """Return whether nobody acts on generated tokens over so few keys [B, Hk, n, D]."""
        return all(key.shape[2] < part.least_keys for part in self.parts)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Register the function: a pickled model may come back in a process that has never optimized one."""
        register(NAME, vlmopt_attention)
        self.__dict__.update(state)


def vlmopt_attention(module: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Let a part compute the attention, or else the model's kernel; then let all parts act on its output."""
    plan: AttentionPlan = module._vlmopt_plan
    query, key, value, mask = attention_arguments(args, kwargs)

    def kernel() -> tuple[Tensor, Tensor | None]:
        return base_function(module, plan.base)(BaseView(module, plan.base), query, key, value, mask, **kwargs)

    if torch.compiler.is_compiling() and query.shape[2] == 1 and idle(plan.session):
        return kernel()
    running = STEP.get()
    if isinstance(running, SidePass):
        at = AttentionCall(plan.layer, module, query, key, value, mask, kwargs)
        running.before_kernel(at)
        out, weights = kernel()
        running.behind_kernel(at, out)
        return out, weights
    step = plan.session.running_step()
    if step is None or (isinstance(step, DecodeStep) and plan.leaves(key)):
        return kernel()
    mask = None if mask is None else plain(mask)
    if isinstance(step, PromptStep):
        step.slot(Reached).parts.add(("attention", plan.layer))
    at = AttentionCall(plan.layer, module, query, *filled(plan, step, key, value, mask), mask, kwargs)
    computed = weights = None
    for part in plan.parts:
        computed = part.compute(step, at) if computed is None else computed
    if computed is None:
        computed, weights = kernel()
    for part in plan.parts:
        computed = part.behind(step, at, computed)
    return computed, weights


def filled(plan: AttentionPlan, step: Step, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the keys and values that parts see: those of a static cache without the empty slots that no mask hides.

    Without a mask the rows of such a cache are causal from its first slot on; parts count from the last key back.
    """
    if mask is not None or not isinstance(step, PromptStep):
        return key, value
    count = step.stored(step.store(plan.session.stages.of(plan.layer), plan.layer))
    return (key[:, :, :count], value[:, :, :count]) if count < key.shape[2] else (key, value)


def base_function(module: nn.Module, config: Any) -> Attention:
    """Return the kernel the unwrapped module would call; "eager" lives in the modeling file of the module's class."""
    name = implementation(config)
    if name == "eager":
        own: Attention = sys.modules[type(module).__module__].eager_attention_forward
        return own
    registered: Attention = ALL_ATTENTION_FUNCTIONS[name]
    return registered


def why_not(module: Any) -> str | None:
    """Return why the softmax of a layer cannot be replaced, None if it can."""
    if module is None:
        return "the layer has no attention"
    if not hasattr(module, "config"):
        return f"{type(module).__name__} has its own attention code"
    if getattr(module, "sinks", None) is not None:
        return "its softmax has learned sink logits"
    return None


def plan_of(session: Session, layer: int) -> AttentionPlan:
    """Return what acts in the attention of a decoder layer, which is routed through `vlmopt_attention` once."""
    module = session.structure.attentions[layer]
    plan: AttentionPlan | None = getattr(module, "_vlmopt_plan", None)
    if plan is None:
        plan = AttentionPlan(session, layer, module.config)
        route(session, module, plan, NAME)
    return plan


def route(session: Session, module: Any, plan: Any, name: str) -> None:
    """Let an attention module call the function `name`, which finds `plan` on it; the undo goes onto the stack."""
    base = module.config
    clone = substitute(base, name)
    session.undo.append(Uninstall(module, base))
    module._vlmopt_plan = plan
    module.config = clone


class Uninstall:
    """Give an attention module its own config back."""

    def __init__(self, module: nn.Module, base: Any) -> None:
        self.module, self.base = module, base

    def __call__(self) -> None:
        self.module.config = self.base
        vars(self.module).pop("_vlmopt_plan", None)
