"""At the decoder as a whole: a step opens, the output gets its logical length, the cache learns what it holds."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from .. import compat
from ..arguments import OuterArguments, by_name
from ..cache import LogicalCache, Moved
from ..call import STEP, Call, DecodeStep, PromptStep, Session, Step
from ..component import Components
from ..context import CacheState, VisualContext
from ..grouping import build_context
from ..unseen import refuse_bypassed, refuse_taken_off, refuse_ungrouped, refuse_unseen
from . import checkpointing


class OpenStep:
    """Forward pre-hook of the decoder."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.signature = inspect.signature(type(session.structure.decoder).forward)
        self.windowed = any("sliding" in kind or "chunk" in kind for kind in session.structure.layer_types)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        STEP.set(None)
        call = self.session.running_call()
        if call is None:
            refuse_taken_off(self.session)
            return
        if args:
            kwargs = by_name(self.signature, module, *args, **kwargs)
        arguments, call.arguments = call.arguments or OuterArguments({}), None
        embeds = kwargs.get("inputs_embeds")
        if embeds is None or embeds.shape[1] > 1:
            compat.require(compat.DECODER, kwargs, type(module).__name__)
        if embeds is None:
            return
        cache = compat.cache_in(kwargs)
        past = 0 if cache is None else int(cache.get_seq_length())
        if call.aside(cache, arguments.input_ids):
            call = Call(self.session, call.clock, by_generate=True)
        call.began = past if call.began is None else call.began
        q = embeds.shape[1]
        if arguments.embeds_only and q > 1:
            call.skip("pruning", "the call passed inputs_embeds without input_ids: visual tokens cannot be located")
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(past, past + q, device=embeds.device)[None]
        if module.training:
            checkpointing.install(self.session)
        state = cache._vlmopt if isinstance(cache, LogicalCache) else None
        facts: dict[str, Any] = {
            "batch": embeds.shape[0], "q": q, "past": past, "device": embeds.device, "call": call, "embeds": embeds,
            "positions": positions, "given": kwargs, "arguments": arguments, "states": [] if state is None else [state],
        }  # fmt: skip
        end = call.request.length
        step: Step
        if past and (q == 1 if end is None else past >= end):
            unmasked = q == 1 and kwargs.get("attention_mask") is None
            step = DecodeStep(**facts, fast=unmasked and self.stays_fast(state))
        else:
            context = self.context(call, arguments, q, past)
            step = PromptStep(**facts, context=context, fixed=compat.why_fixed(cache))
        call.open_step(step)
        for component in self.session.slot(Components):
            component.open_step(step, cache)
        STEP.set(step)

    def context(self, call: Call, arguments: OuterArguments, q: int, past: int) -> VisualContext | None:
        """Return where visual tokens are in a chunk of a prompt; None where it has none."""
        context = build_context(self.session, arguments, call, q, past)
        if context is None:
            refuse_unseen(call, arguments, q, past)
        else:
            refuse_ungrouped(call, arguments)
        return context

    def stays_fast(self, state: CacheState | None) -> bool:
        """Return whether a plain decode step needs nothing that was not in place for the step before."""
        return (
            state is not None
            and not self.windowed
            and compat.implementation(self.session.structure.config) != "eager"  # always makes a mask
            and not state.shift
            and all(valid is None for valid in state.valid.values())
        )


class CloseStep:
    """Forward hook of the decoder."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        step = self.session.running_step()
        if step is None:
            return None
        STEP.set(None)
        if isinstance(step, PromptStep) and step.context is not None:
            refuse_bypassed(step)
        if step.rows:
            commit(step, max(self.session.stage_of))
            output = restore_length(step, self.session.stage_of[-1], output)
        cache = compat.cache_in(kwargs)
        if cache is None and isinstance(output, dict):
            cache = compat.cache_in(output)  # its own
        for component in self.session.slot(Components):
            component.close_step(step, cache)
        step.call.close_step(step, cache)
        return output


def commit(step: Step, stages: int) -> None:
    """Append this chunk's surviving rows to what the cache remembers."""
    state = step.state
    if state is None:
        return
    columns = {store: step.columns(store) for store in {*range(1, stages + 1), *state.index}}
    for store, (index, valid) in columns.items():
        if index is not None:
            state.index[store], state.valid[store] = index, valid
    state.tail = step.past + step.q
    state.shift.update(step.slot(Moved).shift)


def restore_length(step: Step, stage: int, output: Any) -> Any:
    """Scatter the last hidden state to logical length, zeros at dropped places, so that labels and slices still fit."""
    rows = step.rows.get(stage)
    hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state
    if rows is None or hidden.shape[1] != rows.log.shape[1]:  # some loops keep only the last rows
        return output
    full = scatter_rows(hidden, rows.log.to(hidden.device), rows.valid, step.q)
    if isinstance(output, tuple):
        return (full, *output[1:])
    output.last_hidden_state = full
    return output


def scatter_rows(hidden: Tensor, log: Tensor, valid: Tensor | None, length: int) -> Tensor:
    """Scatter hidden [B, W, d] to logical indices `log`: [B, length, d]; fillers and dropped ones are zero."""
    if valid is not None:
        hidden = hidden * valid.to(hidden.device)[..., None].to(hidden.dtype)
    full = hidden.new_zeros(hidden.shape[0], length, hidden.shape[-1])
    return full.scatter_(1, log[..., None].expand_as(hidden), hidden)
