"""In the attention: one function of ours, switched on per attention module by a shallow copy of its config.

The model's own config never changes, so mask creation, flash checks, `save_pretrained` and the
vision tower are untouched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from vlmopt.pruning.signals import TEXT, AttentionRows

from ..call import Session, Step
from ..compat import attention_arguments, implementation, substitute
from ..side_forward import HeadOutputs, Look, Looked
from ..unseen import Reached
from .last_rows import longest_question, probe_rows

NAME = "vlmopt"


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


class Kernel:
    """What may compute the attention of a layer in the place of its kernel."""

    def run(
        self, step: Step, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> Tensor | None:
        """The layer's attention output [B, Q, H, D]; None where the kernel has to run."""
        raise NotImplementedError


class Edits:
    """What changes the attention output of a layer."""

    def active(self, step: Step) -> bool:
        """Whether `run` has anything to do in this step."""
        raise NotImplementedError

    def replaces_kernel(self, step: Step, query: Tensor) -> bool:
        """Whether `run` does without the kernel's output in this step."""
        raise NotImplementedError

    def run(
        self, step: Step, out: Tensor | None, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kw: Any
    ) -> Tensor:
        """The output [B, Q, H, D], changed; `out` None: computed here for every row."""
        raise NotImplementedError


class Reader:
    """What looks at keys and values of a layer when its attention has run."""

    def read(self, step: Step, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> None:
        """Of the sequence's own passes; key and value [B, Hk, n, D] are all that the layer attended to."""
        raise NotImplementedError


class Probed(dict[int, Tensor]):
    """State of a step: layer -> its last rows, fp32 [B, H, R, L] over logical places."""


class AttentionPlan:
    """What happens in one attention module: which of its rows are read, corrected, and how its prefill is computed."""

    def __init__(self, session: Session, layer: int, base: Any) -> None:
        register(NAME, vlmopt_attention)
        self.session, self.layer, self.base = session, layer, base
        self.rows = 0
        self.text = False  # also the rows of the question
        self.edits: Edits | None = None
        self.prefill: Kernel | None = None
        self.decode: Kernel | None = None
        self.reader: Reader | None = None
        self.heads = False  # passes beside the sequence take down what heads make

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A pickled model may come back in a process that has never optimized one."""
        register(NAME, vlmopt_attention)
        self.__dict__.update(state)

    def count(self, step: Step) -> int:
        """How many of the last rows are read in this step."""
        return max(self.rows, longest_question(step)) if self.text else self.rows


def vlmopt_attention(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Delegate to the base kernel; read the rows that selectors asked for, and correct those that corrections name."""
    plan = cast("AttentionPlan", module._vlmopt_plan)
    step = plan.session.running_step()
    given = query, key, _, attention_mask = attention_arguments(args, kwargs)
    base = base_function(module, plan.base)
    if step is None:
        return base(BaseView(module, plan.base), *given, **kwargs)
    step.slot(Reached).parts.add(("attention", plan.layer))
    side = step.side
    if isinstance(side, Look) and side.layer == plan.layer:
        raise Looked(probe_rows(step, side.count, query, key, attention_mask, **kwargs))
    edits = plan.edits if plan.edits is not None and plan.edits.active(step) else None
    if edits is not None and edits.replaces_kernel(step, query):
        return edits.run(step, None, *given, **kwargs), None
    weights = None
    out = None
    for kernel in (plan.prefill, plan.decode) if side is None else ():
        out = kernel.run(step, *given, **kwargs) if kernel is not None and out is None else out
    if out is None:
        out, weights = base(BaseView(module, plan.base), *given, **kwargs)
    reads = step.context is not None and side is None and not step.again
    if reads and (count := plan.count(step)):
        start = step.call.clock.now()
        step.slot(Probed)[plan.layer] = probe_rows(step, count, query, key, attention_mask, **kwargs)
        step.call.page.scoring.append((start, step.call.clock.now()))
    if edits is not None:
        out = edits.run(step, out, *given, **kwargs)
    elif plan.heads and isinstance(side, HeadOutputs):
        side.found[plan.layer] = out[torch.arange(len(out), device=out.device), side.rows.to(out.device)]
    if plan.reader is not None and side is None and not step.again:
        plan.reader.read(step, *given, **kwargs)
    return out, weights


def base_function(module: nn.Module, config: Any) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The kernel the unwrapped module would call; "eager" lives in the modeling file of the module's class."""
    name = implementation(config)
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


def why_not(module: Any) -> str | None:
    """Why the softmax of a layer cannot be replaced, None if it can."""
    if module is None:
        return "the layer has no attention"
    if not hasattr(module, "config"):
        return f"{type(module).__name__} has its own attention code"
    if getattr(module, "sinks", None) is not None:
        return "its softmax has learned sink logits"
    return None


def plan_of(session: Session, layer: int) -> AttentionPlan:
    """Route one attention module through `vlmopt_attention` (once); the undo goes onto the session's stack."""
    module = session.structure.attentions[layer]
    assert module is not None
    plan: AttentionPlan | None = getattr(module, "_vlmopt_plan", None)
    if plan is None:
        base = module.config
        plan = AttentionPlan(session, layer, base)
        clone = substitute(base, NAME)
        module._vlmopt_plan = plan
        module.config = clone
        session.undo.append(Uninstall(module, base))
    return plan


def install(session: Session, need: AttentionRows) -> None:
    """Read rows of one attention module."""
    plan = plan_of(session, need.layer)
    if type(need) is AttentionRows:  # a look-ahead is started by the boundary, not by the layer's own run
        plan.text |= need.rows == TEXT
        plan.rows = max(plan.rows, 0 if need.rows == TEXT else int(need.rows))


class Uninstall:
    def __init__(self, module: nn.Module, base: Any) -> None:
        self.module, self.base = module, base

    def __call__(self) -> None:
        self.module.config = self.base
        del self.module._vlmopt_plan
