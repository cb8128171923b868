"""Compute attention rows of a prompt beside a layer's kernel, from the queries and keys that it is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmopt.attention_fix.attention_rows import masked_logits, masked_softmax

from ..call import PromptStep
from ..context import Rows, VisualContext
from ..padding import padding
from ..points import AttentionCall, SidePass


@dataclass(frozen=True, eq=False)
class Reading:
    """Which rows of one layer are read: the last `count` real ones of the prompt."""

    count: int
    rows: Rows  # that reach the layer
    length: int  # logical rows of the chunk
    prompt: int  # so many of them belong to the prompt; behind it come candidates of assisted decoding
    real: Tensor | None  # Bool[B, L] over logical indices; None where all are


class Looked(Exception):
    """Raised to carry the rows out of the layer's forward."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows


@dataclass(frozen=True, eq=False)
class Look(SidePass):
    """Stop inside the attention function of a layer, before its kernel, with rows of it."""

    layer: int
    reading: Reading

    def before_kernel(self, at: AttentionCall) -> None:
        """Raise `Looked` in that layer."""
        if at.layer == self.layer:
            raise Looked(read_rows(self.reading, at))


def reading(step: PromptStep, stage: int, count: int) -> Reading:
    """Return which rows are read: the last `count` of the prompt, in a layer of `stage`."""
    end = step.call.request.length
    prompt = step.q if end is None else min(end - step.past, step.q)
    return Reading(count, step.current(stage), step.q, prompt, padding(step))


def longest_question(step: PromptStep, context: VisualContext) -> int:
    """Return the most rows between a sample's last visual token and the end of the step, at least 1."""

    def longest() -> int:
        places = torch.arange(step.q, device=context.visual.device)
        last = places.masked_fill(~context.visual, -1).amax(1)
        return max(step.q - 1 - int(last[last >= 0].min()), 1)

    return int(step.remember(("question",), None, longest))


@dataclass(frozen=True, eq=False)
class LastRows:
    """Attention of the last R prompt rows of a chunk to all keys."""

    weights: Tensor  # fp32 [B, H, R, n], 0 where blocked and in rows that are not there
    allowed: Tensor  # Bool, broadcast against `weights`
    places: Tensor  # Long[B, R] logical offset of each row inside the chunk
    known: Tensor  # Bool[B, R]: False where a sample has fewer rows


@torch.no_grad()  # choices have no gradient, and a checkpointed layer must keep the same tensors when it runs again
def read_rows(of: Reading, at: AttentionCall) -> Tensor:
    """Return attention fp32 [B, H, R, L] of the last R prompt rows to logical indices, softmax over all keys."""
    weights = read_last(of, at).weights[..., -at.query.shape[2] :]
    log = of.rows.log.to(weights.device)[:, None, None].expand_as(weights)
    return weights.new_zeros(*weights.shape[:3], of.length).scatter_(3, log, weights)


def read_last(of: Reading, at: AttentionCall) -> LastRows:
    """Return the explicit attention of the rows that are read."""
    query, key, mask, log = at.query, at.key, at.mask, of.rows.log
    last, known = last_rows(of) or (None, None)
    if last is None or known is None:
        rows = query[:, :, -of.count :]
        if mask is not None and mask.ndim == 4:
            mask = mask[:, :, -of.count :, : key.shape[2]]
        places, valid = log[:, -rows.shape[2] :], of.rows.valid  # False on fillers, which see what they stand for saw
        known = torch.ones_like(places, dtype=torch.bool) if valid is None else valid[:, -rows.shape[2] :]
    else:
        batch = torch.arange(query.shape[0], device=query.device)[:, None]
        rows = query.transpose(1, 2)[batch, last].transpose(1, 2)
        mask = row_mask(mask, last, batch, query.shape[2], key.shape[2])
        places = log.gather(1, last.to(log.device))
    logits, blocked = masked_logits(rows.float(), key.float(), mask, at.scaling, at.softcap)
    allowed = torch.ones_like(logits[:, :1], dtype=torch.bool) if blocked is None else ~blocked
    known = known.to(logits.device)
    weights = masked_softmax(logits, blocked) * known[:, None, :, None]
    return LastRows(weights, allowed, places.to(logits.device), known)


def last_rows(of: Reading) -> tuple[Tensor, Tensor] | None:
    """Return the physical index Long[B, R] of the rows, and Bool[B, R], False where a sample has fewer.

    None when they simply come last. They do not with right padding, nor when assisted decoding has appended its
    candidates to the prompt.
    """
    if of.prompt == of.length and (of.real is None or bool(of.real[:, -1].all())):
        return None
    logical = of.rows.log
    real = logical < of.prompt
    if of.real is not None:
        real = real & of.real.to(logical.device).gather(1, logical)
    if of.rows.valid is not None:
        real = real & of.rows.valid
    order = torch.arange(logical.shape[1], device=logical.device).expand_as(logical)
    last = order.masked_fill(~real, -1).topk(min(of.count, logical.shape[1]), dim=1).values.flip(1)
    return last.clamp_min(0), last >= 0


def row_mask(mask: Tensor | None, last: Tensor, batch: Tensor, q: int, kv: int) -> Tensor:
    """Return the mask of chosen query rows [B, R], as Bool or float [B, 1, R, kv]."""
    if mask is not None and mask.ndim == 4:
        full = mask.expand(last.shape[0], *mask.shape[1:])[..., :kv]
        return full[batch, :, last].transpose(1, 2)
    columns = torch.arange(kv, device=last.device)
    causal = columns <= (last + (kv - q))[:, None, :, None]
    return causal if mask is None else causal & mask[:, None, None, -kv:].bool()
