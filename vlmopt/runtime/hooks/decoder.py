"""At the decoder as a whole: a step opens, the output gets its logical length, the cache learns what it holds."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from .. import cache_kinds, compat
from ..arguments import OuterArguments, by_name
from ..cache import LogicalCache, commit
from ..call import STEP, Call, DecodeStep, PromptStep, Session, Step
from ..component import Components
from ..context import CacheState, VisualContext
from ..grouping import build_context
from ..masks import scatter_rows
from ..unseen import refuse_bypassed, refuse_taken_off, refuse_ungrouped, refuse_unseen
from . import checkpointing
from .compiled import fit_mask, note, passes


class OpenStep:
    """Forward pre-hook of the decoder."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.signature = inspect.signature(type(session.structure.decoder).forward)
        self.windowed = any("sliding" in kind or "chunk" in kind for kind in session.structure.layer_types)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if passes(self.session, kwargs, kwargs.get("inputs_embeds")):
            return args, fit_mask(kwargs)
        self.open(module, args, kwargs)
        return None

    def open(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a step."""
        STEP.set(None)
        call = self.session.running_call()
        if call is None:
            refuse_taken_off(self.session)
            return
        if args:
            kwargs = by_name(self.signature, module, *args, **kwargs)
        arguments, call.progress.arguments = call.progress.arguments or OuterArguments({}), None
        embeds = kwargs.get("inputs_embeds")
        if embeds is None or embeds.shape[1] > 1:
            compat.require(compat.DECODER, kwargs, type(module).__name__)
        if embeds is None:
            return
        if module.training:
            checkpointing.install(self.session)
        cache = compat.cache_in(kwargs)
        if call.aside(cache, arguments.input_ids):
            call = call.beside()
        step = self.step(call, arguments, embeds, kwargs, cache)
        call.open_step(step)
        for component in self.session.slot(Components):
            component.open_step(step, cache)
        STEP.set(step)

    def step(
        self, call: Call, arguments: OuterArguments, embeds: Tensor, given: dict[str, Any], cache: Any
    ) -> PromptStep | DecodeStep:
        """Return what this forward is: a prompt, or rows behind it."""
        past, q, end = 0 if cache is None else int(cache.get_seq_length()), embeds.shape[1], call.request.length
        if call.progress.began is None:
            call.progress.began = past
        if arguments.embeds_only and q > 1:
            call.skip("pruning", "the call passed inputs_embeds without input_ids: visual tokens cannot be located")
        positions = given.get("position_ids")
        if positions is None:
            positions = torch.arange(past, past + q, device=embeds.device)[None]
        state = cache._vlmopt if isinstance(cache, LogicalCache) else None
        step: PromptStep | DecodeStep
        if past and (q == 1 if end is None else past >= end):
            unmasked = q == 1 and given.get("attention_mask") is None and not cache_kinds.is_static(cache)
            fast = unmasked and self.stays_fast(state)
            step = DecodeStep(
                call=call, embeds=embeds, past=past, positions=positions, given=given, arguments=arguments, fast=fast
            )
        else:
            arguments = arguments.asked_with(call.prompt_mask, past + q, embeds.shape[0])
            fixed = cache_kinds.why_fixed(cache, inside=any(self.session.stages.cuts))
            context = self.context(call, arguments, q, past)
            step = PromptStep(
                call=call, embeds=embeds, past=past, positions=positions, given=given, arguments=arguments,
                context=context, fixed=fixed,
            )  # fmt: skip
        if state is not None:
            step.put(state)
        return step

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
        if passes(self.session, kwargs, kwargs.get("inputs_embeds")):
            return None
        step = self.session.running_step()
        if step is None:
            return None
        STEP.set(None)
        if isinstance(step, PromptStep):
            step.call.page.left.append(rows_left(step, self.session.stages.last))
            if step.context is not None:
                refuse_bypassed(step)
        if step.rows:
            commit(step, self.session.stages.last)
            output = restore_length(step, self.session.stages.last, output)
        cache = compat.cache_in(kwargs)
        if cache is None and isinstance(output, dict):
            cache = compat.cache_in(output)  # its own
        for component in self.session.slot(Components):
            component.close_step(step, cache)
        step.call.close_step(step, cache)
        note(step, cache)
        return output


def rows_left(step: Step, stage: int) -> Tensor:
    """Return Bool[B, q]: rows of a chunk that are real, and were not dropped."""
    mask, rows = step.arguments.attention_mask2d, step.rows.get(stage)
    real = torch.ones(step.batch, step.q, dtype=torch.bool, device=step.device)
    if mask is not None and mask.shape == (step.batch, step.past + step.q):
        real = mask[:, -step.q :].bool().to(step.device)
    if rows is None:
        return real
    log = rows.log.to(step.device)
    if rows.valid is None:
        return real & torch.zeros_like(real).scatter_(1, log, True)
    return real & torch.zeros_like(real, dtype=torch.long).scatter_add_(1, log, rows.valid.to(log)).bool()


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
