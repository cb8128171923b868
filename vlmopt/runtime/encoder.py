"""Touch point B', inside the vision encoder: what goes through the projector, and what a block of the tower attends to.

Only installed for methods that ask. Results lie on the call's `Features`, in the order in which the projector worked.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlmopt.pruning.signals import TwoLayers, VisionAttention, VisionKeys

from .attention import BaseView, Uninstall, base_function, register
from .call import Session
from .compat import attention_arguments, substitute
from .offload import resident

NAME = "vlmopt_vision"
NORMS = (nn.LayerNorm, nn.RMSNorm)  # and the RMS norms of transformers, which have a `variance_epsilon`
ROWS_AT_ONCE = 1024  # query rows of a column mean; bounds its memory at heads x 1024 x patches


@dataclass
class Encoded:
    """State of the features of a call: what runs of the encoder left for the methods of the policy."""

    inputs: list[Tensor] = field(default_factory=list)  # of the projector, as it was called
    outputs: list[Tensor] = field(default_factory=list)
    attention: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))  # block -> [items, patches]
    keys: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))  # block -> [items, patches, d_h]


def part(outer: Any, path: str) -> nn.Module:
    """The module at a family's path, which is written from the loaded model down."""
    return cast("nn.Module", outer.get_submodule(path.removeprefix("model.")))


class ProjectorHook:
    """Forward hook of the projector: keeps references to input and output, copies nothing."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = self.session.running_call()
        given = args[0] if args else next(iter(kwargs.values()), None)
        if call is not None and isinstance(given, Tensor) and isinstance(output, Tensor):
            encoded = call.features.slot(Encoded)
            encoded.inputs.append(given.detach())
            encoded.outputs.append(output.detach())


class ProjectorLayers:
    """The projector's parts, with what selectors derived from them, for as long as it computes the same.

    It is asked with two rows: adapters merge into weights without a trace in addresses or autograd's version counters.
    """

    def __init__(self) -> None:
        self.rows: Tensor | None = None  # [2, p, d_v]
        self.answer: Tensor | None = None
        self.layers: TwoLayers | None = None

    @torch.no_grad()
    def of(self, module: nn.Module, inputs: Tensor) -> TwoLayers | None:
        """Its two layers, None where it is no such MLP; inputs [k, p, d_v], patches as they enter."""
        if self.rows is None or self.rows.shape[1:] != inputs.shape[1:]:
            self.rows, self.answer = inputs[:2].clone(), None
        rows, before = self.rows.to(inputs), self.answer
        self.answer = module.forward(rows.flatten(0, 1))
        same = before is not None and (before.dtype, before.device) == (self.answer.dtype, self.answer.device)
        if not (same and torch.equal(before, self.answer)):  # type: ignore[arg-type]
            self.layers = two_layers(module, rows, self.answer)
        return self.layers


def two_layers(module: nn.Module, rows: Tensor, expected: Tensor) -> TwoLayers | None:
    """The projector as second(gelu(first(norm(x)))), None where it is none: tried out on some of its input rows.

    Args:
        rows: [k, p, d_v], patches as they enter.
        expected: [k, d], what the module makes of them.
    """
    parts = [m for m in module.modules() if not list(m.children())]
    linears = [m for m in parts if isinstance(m, nn.Linear) and m.weight.is_floating_point()]
    norms = [m for m in parts if m not in linears and any(True for _ in m.parameters())]
    activations = [m for m in parts if m not in linears and m not in norms and "gelu" in type(m).__name__.lower()]
    if len(linears) != 2 or len(norms) > 1 or len(activations) != 1:
        return None
    norm = resident(norms[0]) if norms else None
    if norm is not None and not (isinstance(norm, NORMS) or hasattr(norm, "variance_epsilon")):
        return None
    width = rows.shape[-1] if norm is None else next(norm.parameters()).shape[-1]
    first, second = (resident(linear) for linear in linears)
    found = TwoLayers(norm, width == rows.shape[-1], first, activations[0], second)
    try:
        x = rows.flatten(1) if norm is None else norm(rows if found.per_patch else rows.flatten(1)).flatten(1)
        got = found.second(found.gelu(found.first(x)))
    except RuntimeError:  # shapes of another form
        return None
    return found if got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-2, atol=1e-3) else None


class VisionPlan:
    """What is read in one attention module of the tower."""

    def __init__(self, session: Session, base: Any, has_cls: bool) -> None:
        register(NAME, vision_attention)
        self.session, self.base, self.has_cls = session, base, has_cls
        self.attention: set[int] = set()  # the numbers under which it is asked for: a block has two
        self.keys: set[int] = set()

    def __setstate__(self, state: dict[str, Any]) -> None:
        register(NAME, vision_attention)
        self.__dict__.update(state)


def vision_attention(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Delegate to the base kernel, and read what its patches receive."""
    plan = cast("VisionPlan", module._vlmopt_plan)
    query, key, _, _ = given = attention_arguments(args, kwargs)
    out = base_function(module, plan.base)(BaseView(module, plan.base), *given, **kwargs)
    call = plan.session.running_call()
    if call is not None:
        start = call.clock.now()
        read_patches(plan, call.features.slot(Encoded), query, key, **kwargs)
        call.page.probing.append((start, call.clock.now()))
    return out


@torch.no_grad()  # as in the decoder's probe
def read_patches(plan: VisionPlan, store: Encoded, query: Tensor, key: Tensor, **kwargs: Any) -> None:
    """Take down what patches receive and their keys, picture by picture."""
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    pieces = [(query, key)]
    if kwargs.get("cu_seq_lens_q") is not None:  # flash kernels take all pictures as one row
        lengths = kwargs["cu_seq_lens_q"].diff().tolist()
        pieces = list(zip(query.split(lengths, 2), key.split(lengths, 2), strict=True))
    for q, k in pieces:
        first = int(plan.has_cls)
        if plan.attention:
            received = column_mean(q[:, :, :1] if plan.has_cls else q, k, float(scaling))
            received = received[:, first:]
            for number in plan.attention:
                store.attention[number].append(received)
        if plan.keys:
            keys = k.float().mean(1)[:, first:]
            for number in plan.keys:
                store.keys[number].append(keys)


def column_mean(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """fp32 [B, K]: attention that every key receives, mean over heads [B, H, R, d] and rows, some rows at a time."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1).float().transpose(-1, -2)
    total = torch.zeros(key.shape[0], key.shape[-1], device=key.device)
    for rows in query.split(ROWS_AT_ONCE, 2):
        total += (rows.float() @ key * scaling).softmax(-1).sum(2).mean(1)
    return total / query.shape[2]


def blocks_of(tower: nn.Module) -> list[nn.Module]:
    """The attention module of every block of a transformer tower; empty for another kind of tower."""
    found = [m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m)]
    stacks = [[attention_in(block) for block in stack] for stack in found]
    whole = [[a for a in stack if a is not None] for stack in stacks if all(a is not None for a in stack)]
    return max(whole, key=len, default=[])


def attention_in(block: nn.Module) -> nn.Module | None:
    return next(
        (m for m in block.children() if hasattr(m, "config") and any(hasattr(m, n) for n in ("qkv", "q_proj"))), None
    )


def has_cls(tower: nn.Module) -> bool:
    return any(name.endswith(("class_embedding", "cls_token")) for name, _ in tower.named_parameters())


def install(session: Session, need: VisionAttention | VisionKeys) -> None:
    """Route one attention module of the tower through `vision_attention`."""
    tower = part(session.anatomy.outer, session.family.vision_tower)
    attentions = blocks_of(tower)
    module: Any = attentions[need.layer]
    plan: VisionPlan | None = getattr(module, "_vlmopt_plan", None)
    if plan is None:
        base = module.config
        plan = VisionPlan(session, base, has_cls(tower))
        clone = substitute(base, NAME)
        module._vlmopt_plan = plan
        module.config = clone
        session.undo.append(Uninstall(module, base))
    asked = plan.attention if isinstance(need, VisionAttention) else plan.keys
    asked.add(need.layer)


def install_projector(session: Session) -> None:
    """Keep what goes into the projector and what comes out."""
    projector = part(session.anatomy.outer, session.family.projector)
    session.hook(projector.register_forward_hook(ProjectorHook(session), with_kwargs=True))
