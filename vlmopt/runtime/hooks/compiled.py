"""A compiled step of decoding over a static cache: where nobody has work, hooks let the graph of the model pass.

`generate` compiles the forward of one row. Every hook would break that graph, and none has anything to do but for one:
the mask that `generate` made is logical, and layers see physical slots.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import cache_kinds, compat, masks
from ..cache import LogicalCache
from ..call import Call, PromptStep, Session, Step
from ..component import Components
from ..context import CacheState
from ..structure import is_window


@dataclass(frozen=True)
class Uncompiled:
    """State of a session, and of a call that would be compiled without it."""

    why: str | None = None  # decoding must not be compiled; None: it may be


def passes(session: Session, given: Mapping[str, Any], rows: Tensor | None) -> bool:
    """Return whether a pass over `rows` [B, L] or [B, L, d] is compiled and nobody has work in it.

    Args:
        given: the other arguments, the cache among them.
    """
    if not torch.compiler.is_compiling() or rows is None or rows.shape[1] != 1 or not idle(session):
        return False
    cache = compat.cache_in(given)
    return cache_kinds.is_static(cache) and (not isinstance(cache, LogicalCache) or cache._vlmopt.seen is not None)


def note(step: Step, cache: Any) -> None:
    """Write down on a static cache, when a prompt has ended, what compiled steps have to know."""
    if not isinstance(step, PromptStep) or not cache_kinds.is_static(cache):
        return
    why = step.call.session.slot(Uncompiled).why
    if why is not None:
        if step.call.find(Uncompiled) is not None:
            step.call.skip("compiled decoding", why)
    elif isinstance(cache, LogicalCache) and step.ends_prompt and (room := cache_kinds.static_room(cache)) is not None:
        cache._vlmopt.seen = slots(cache._vlmopt, room)


def slots(state: CacheState, room: int) -> Tensor | None:
    """Return Long[B, room]: the logical index of every slot, filled or not; -1 where it is a filler."""
    stage = max(state.index)
    index, valid = state.columns(stage, room + state.dropped[0], state.index[stage].device)
    return index if index is None or valid is None else index.masked_fill(~valid, -1)


def why_not(session: Session) -> str | None:
    """Return why decoding must not be compiled, None if it may: hooks that have work cannot be traced."""
    if any(part.on_single_rows for part in session.slot(Components)):
        return "a part of the policy acts on generated tokens, by hooks that cannot be traced"
    structure, stages = session.structure, session.stages
    if stages.repack:
        return "positions='repack' moves every generated token"
    recurrent = any(kind in compat.RECURRENT for kind in structure.layer_types)
    if stages.cuts and (recurrent or any(is_window(structure, layer) for layer in range(stages.depth))):
        return "behind a cut, layers with windows or states of their own need other masks at every token"
    return None


def idle(session: Session) -> bool:
    """Return whether hooks have nothing to do in a compiled pass of one row."""
    return session.slot(Uncompiled).why is None


def forbid(call: Call, arguments: dict[str, Any]) -> None:
    """Let a `generate` not compile its decoding, in place; it might over a static cache alone."""
    config = arguments.get("generation_config")
    setting = partial(compat.generation_setting, call.session.model, arguments)
    if setting("cache_implementation") is None and not cache_kinds.is_static(compat.cache_in(arguments)):
        return
    if setting("disable_compile"):
        return
    call.put(call.session.slot(Uncompiled))
    if config is None:
        arguments["disable_compile"] = True
    else:  # which takes no other settings beside it
        arguments["generation_config"] = config = copy.deepcopy(config)
        config.disable_compile = True


def fit_mask(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a decoder with the mask's columns [B, 1, 1, logical] those of the slots of the cache."""
    cache, mask = compat.cache_in(given), given.get("attention_mask")
    if not isinstance(cache, LogicalCache) or (seen := cache._vlmopt.seen) is None:
        return given
    if isinstance(mask, Mapping):
        return {**given, "attention_mask": {kind: columns_of(one, seen) for kind, one in mask.items()}}
    return {**given, "attention_mask": columns_of(mask, seen)}


def columns_of(mask: Tensor | None, seen: Tensor) -> Tensor | None:
    """Return the columns `seen` Long[B, slots] of a mask; slots of -1 are hidden."""
    if mask is None:
        return None
    if mask.ndim == 2:
        return masks.gather_2d(mask, seen, seen >= 0)
    return masks.gather_4d(mask, None, seen, seen >= 0, 0)
