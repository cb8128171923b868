"""Capture what a block of the vision tower attends to, and its keys, laid on the tokens that its patches became."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vlmopt.pruning.signals import VisionAttention, VisionKeys

from ...families import family_of
from ...methods import Method
from ..call import PromptStep, Session
from ..compat import attention_arguments
from ..context import VisualContext
from ..hooks.attention import BaseView, base_function, register, route
from ..place import Place
from ..structure import ModelStructure, part, whole_blocks
from ..unseen import refuse_unencoded
from .projector import Encoded, OfRows, of_tokens

NAME = "vlmopt_vision"
ROWS_AT_ONCE = 1024  # query rows of a column mean; bounds its memory at heads x 1024 x patches
OfBlock = TypeVar("OfBlock", bound="VisionAttention | VisionKeys")


class VisionPlan:
    """What is read in one attention module of the tower."""

    def __init__(self, session: Session, base: Any, has_cls: bool) -> None:
        register(NAME, vision_attention)
        self.session, self.base, self.has_cls = session, base, has_cls
        self.attention: set[VisionAttention] = set()  # what it is asked for: a block has two numbers
        self.keys: set[int] = set()

    def __setstate__(self, state: dict[str, Any]) -> None:
        register(NAME, vision_attention)
        self.__dict__.update(state)


def vision_attention(module: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Delegate to the base kernel, and read what its patches receive."""
    plan: VisionPlan = module._vlmopt_plan
    query, key, _, _ = given = attention_arguments(args, kwargs)
    out = base_function(module, plan.base)(BaseView(module, plan.base), *given, **kwargs)
    call = plan.session.running_call()
    if call is not None:
        with call.ledger.timed(call.page.in_tower):
            read_patches(plan, call.features.slot(Encoded), query, key, **kwargs)
    return out


@torch.no_grad()  # as for rows of the decoder
def read_patches(plan: VisionPlan, store: Encoded, query: Tensor, key: Tensor, **kwargs: Any) -> None:
    """Record what patches receive and their keys, image by image."""
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    pieces = [(query, key)]
    if kwargs.get("cu_seq_lens_q") is not None:  # flash kernels take all images as one row
        lengths = kwargs["cu_seq_lens_q"].diff().tolist()
        pieces = list(zip(query.split(lengths, 2), key.split(lengths, 2), strict=True))
    for q, k in pieces:
        first = int(plan.has_cls)
        received: dict[bool, Tensor] = {}  # by whether the CLS row alone is read
        for need in plan.attention:
            alone = plan.has_cls and need.rows == "cls"
            if alone not in received:
                received[alone] = column_mean(q[:, :, :1] if alone else q, k, float(scaling))[:, first:]
            store.attention[need].append(received[alone])
        if plan.keys:
            keys = k.float().mean(1)[:, first:]
            for number in plan.keys:
                store.keys[number].append(keys)


def column_mean(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Return fp32 [B, K]: the attention that every key receives, mean over heads [B, H, R, d] and rows."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1).float().transpose(-1, -2)
    total = torch.zeros(key.shape[0], key.shape[-1], device=key.device, dtype=torch.float32)
    for rows in query.split(ROWS_AT_ONCE, 2):
        total += (rows.float() @ key * scaling).softmax(-1).sum(2).mean(1)
    return total / query.shape[2]


def blocks_of(tower: nn.Module) -> list[nn.Module]:
    """Return the attention module of every block of a transformer tower; empty for another kind of tower."""
    found = [m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m)]
    stacks = [[attention_in(block) for block in stack] for stack in found]
    whole = [[a for a in stack if a is not None] for stack in stacks if all(a is not None for a in stack)]
    return max(whole, key=len, default=[])


def attention_in(block: nn.Module) -> nn.Module | None:
    return next(
        (m for m in block.children() if hasattr(m, "config") and any(hasattr(m, n) for n in ("qkv", "q_proj", "q"))),
        None,
    )


def has_cls(tower: nn.Module) -> bool:
    return any(name.endswith(("class_embedding", "cls_token")) for name, _ in tower.named_parameters())


def vision_plan_of(session: Session, layer: int) -> VisionPlan:
    """Route one attention module of the tower through `vision_attention` (once)."""
    tower = part(session.structure.outer, session.family.vision_tower)
    module: Any = blocks_of(tower)[layer]
    plan: VisionPlan | None = getattr(module, "_vlmopt_plan", None)
    if plan is None:
        plan = VisionPlan(session, module.config, has_cls(tower))
        route(session, module, plan, NAME)
    return plan


class InTower(OfRows[OfBlock]):
    """Base of signals of one block."""

    def check(self, model: Any, structure: ModelStructure, method: Method, need: OfBlock) -> None:
        super().check(model, structure, method, need)
        tower = part(structure.outer, family_of(model.config).vision_tower)
        depth = len(blocks_of(tower))
        if not -depth <= need.layer < depth:
            raise ValueError(
                f"{method.name}: block {need.layer} of the vision tower cannot be read; {type(tower).__name__} has "
                f"{f'blocks {-depth}..{depth - 1}' if depth else 'no attention blocks'}"
            )
        whole = whole_blocks(model)
        if whole is not None and need.layer % depth not in whole:
            raise ValueError(
                f"{method.name}: block {need.layer} of {type(tower).__name__} attends inside small windows only; "
                f"blocks that see the whole image: {', '.join(str(i) for i in whole)} of {depth}"
            )


class VisionAttentionCapture(InTower[VisionAttention]):
    """Capture `VisionAttention`."""

    def install(self, session: Session, need: VisionAttention) -> None:
        super().install(session, need)
        vision_plan_of(session, need.layer).attention.add(need)

    def missing(self, step: PromptStep, context: VisualContext, need: VisionAttention) -> str | None:
        read = step.call.features.slot(Encoded).attention[need]
        return super().missing(step, context, need) or unread(step, read)

    def read(self, need: VisionAttention, at: Place) -> Tensor:
        return of_tokens(at, received(need, at)[:, None], 0.0)[:, 0]


class VisionKeysCapture(InTower[VisionKeys]):
    """Capture `VisionKeys`."""

    def install(self, session: Session, need: VisionKeys) -> None:
        super().install(session, need)
        vision_plan_of(session, need.layer).keys.add(need.layer)

    def missing(self, step: PromptStep, context: VisualContext, need: VisionKeys) -> str | None:
        return super().missing(step, context, need) or unread(step, step.call.features.slot(Encoded).keys[need.layer])

    def read(self, need: VisionKeys, at: Place) -> Tensor:
        return of_tokens(at, per_projector_row(at, at.step.call.features.slot(Encoded).keys[need.layer]), 0.0)


def unread(step: PromptStep, values: list[Tensor]) -> str | None:
    """Return why nothing of a block was read though the projector ran, None if something was."""
    if values:
        return None
    refuse_unencoded(step, "its vision tower ran around the attention function")
    return "the vision tower did not run in this call"


def received(need: VisionAttention, at: Place) -> Tensor:
    """Return fp32 [rows] of the projector: the attention that the patches of a row receive."""
    values = at.step.call.features.slot(Encoded).attention[need]
    return per_projector_row(at, [v[..., None] for v in values])[:, 0]


def per_projector_row(at: Place, values: list[Tensor]) -> Tensor:
    """Turn per-patch values, [items, patches, c] per tower call, into [rows, c]: mean over a row's patches."""
    encoded = at.step.call.features.slot(Encoded)
    rows = sum(out.shape[:-1].numel() for out in encoded.outputs)
    arranged = [at.session.family.patches(at.session.structure.outer, v) for v in values]
    flat = torch.cat([v.flatten(0, -2) for v in arranged])
    return flat.reshape(rows, -1, flat.shape[-1]).mean(1)
