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

from vlmopt.attention_fix.rows import attention_rows
from vlmopt.pruning.signals import TEXT, AttentionRows

from ..call import Session, Step
from ..compat import attention_arguments, implementation, substitute
from ..side_forward import HeadOutputs, Look, Looked
from ..unseen import Reached

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
        raise Looked(probe_rows(module, step, side.count, query, key, attention_mask, **kwargs))
    edits = plan.edits if plan.edits is not None and plan.edits.active(step) else None
    if edits is not None and edits.replaces_kernel(step, query):
        return edits.run(step, None, *given, **kwargs), None
    weights = None
    out = None if plan.prefill is None or side is not None else plan.prefill.run(step, *given, **kwargs)
    if out is None:
        out, weights = base(BaseView(module, plan.base), *given, **kwargs)
    reads = step.context is not None and side is None and not step.again
    if reads and (count := plan.count(step)):
        start = step.call.clock.now()
        step.slot(Probed)[plan.layer] = probe_rows(module, step, count, query, key, attention_mask, **kwargs)
        step.call.page.scoring.append((start, step.call.clock.now()))
    if edits is not None:
        out = edits.run(step, out, *given, **kwargs)
    elif plan.heads and isinstance(side, HeadOutputs):
        side.found[plan.layer] = out[torch.arange(len(out), device=out.device), side.rows.to(out.device)]
    return out, weights


def base_function(module: nn.Module, config: Any) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The kernel the unwrapped module would call; "eager" lives in the modeling file of the module's class."""
    name = implementation(config)
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


@torch.no_grad()  # choices have no gradient, and a checkpointed layer must keep the same tensors when it runs again
def probe_rows(
    module: nn.Module, step: Step, count: int, query: Tensor, key: Tensor, mask: Tensor | None, **kwargs: Any
) -> Tensor:
    """Attention fp32 [B, H, R, L] of the last R prompt rows to logical places, softmax over all keys; R <= count."""
    last, known = last_prompt_rows(step, count) or (None, None)
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    softcap = kwargs.get("softcap")
    if last is None:
        rows = query[:, :, -count:]
        if mask is not None and mask.ndim == 4:
            mask = mask[:, :, -count:, : key.shape[2]]
    else:
        batch = torch.arange(query.shape[0], device=query.device)[:, None]
        rows = query.transpose(1, 2)[batch, last].transpose(1, 2)
        mask = row_mask(mask, last, batch, query.shape[2], key.shape[2])
    weights = attention_rows(rows, key, mask, scaling, softcap=softcap)[..., -query.shape[2] :]
    if known is not None:
        weights = weights * known.to(weights.device)[:, None, :, None]
    log = step.current(step.stage).log.to(weights.device)[:, None, None].expand_as(weights)
    return weights.new_zeros(*weights.shape[:3], step.q).scatter_(3, log, weights)


def longest_question(step: Step) -> int:
    """Rows between the last visual token and the end of the step, of the sample that has most of them; at least 1."""

    def longest() -> int:
        assert step.context is not None
        places = torch.arange(step.q, device=step.context.visual.device)
        last = places.masked_fill(~step.context.visual, -1).amax(1)
        return max(step.q - 1 - int(last[last >= 0].min()), 1)

    return int(step.remember(("question",), None, longest))


def last_prompt_rows(step: Step, count: int) -> tuple[Tensor, Tensor] | None:
    """Physical index Long[B, R] of the last real prompt rows of this chunk, and Bool[B, R] False where a sample has
    fewer; None when they simply come last.

    They do not come last with right padding, nor when assisted decoding has appended its candidates to the prompt.
    """
    assert step.context is not None
    rows, mask = step.current(step.stage), step.context.attention_mask2d
    beyond = max(step.past + step.q - (step.call.request.length or step.past + step.q), 0)
    if not beyond and (mask is None or bool(mask[:, -1].all())):
        return None
    logical = rows.log
    real = logical < step.q - beyond
    if mask is not None:
        real = real & mask.to(logical.device).gather(1, logical)
    if rows.valid is not None:
        real = real & rows.valid
    order = torch.arange(logical.shape[1], device=logical.device).expand_as(logical)
    last = order.masked_fill(~real, -1).topk(min(count, logical.shape[1]), dim=1).values.flip(1)
    return last.clamp_min(0), last >= 0


def row_mask(mask: Tensor | None, last: Tensor, batch: Tensor, q: int, kv: int) -> Tensor:
    """The mask of chosen query rows [B, R], as Bool or float [B, 1, R, kv]."""
    if mask is not None and mask.ndim == 4:
        full = mask.expand(last.shape[0], *mask.shape[1:])[..., :kv]
        return full[batch, :, last].transpose(1, 2)
    columns = torch.arange(kv, device=last.device)
    causal = columns <= (last + (kv - q))[:, None, :, None]
    return causal if mask is None else causal & mask[:, None, None, -kv:].bool()


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
