"""Attention of the last rows of a prompt, computed beside the kernel that keeps no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmopt.attention_fix.attention_rows import masked_logits, masked_softmax

from ..call import Step
from ..places import padding


@torch.no_grad()  # choices have no gradient, and a checkpointed layer must keep the same tensors when it runs again
def probe_rows(step: Step, count: int, query: Tensor, key: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor:
    """Attention fp32 [B, H, R, L] of the last R prompt rows to logical places, softmax over all keys; R <= count."""
    read = read_last(step, count, query, key, mask, **kwargs)
    weights = read.weights[..., -query.shape[2] :]
    log = step.current(step.stage).log.to(weights.device)[:, None, None].expand_as(weights)
    return weights.new_zeros(*weights.shape[:3], step.q).scatter_(3, log, weights)


@dataclass(frozen=True, eq=False)
class LastRows:
    """Attention of the last R prompt rows of a chunk to all keys."""

    weights: Tensor  # fp32 [B, H, R, n], 0 where blocked and in rows that are not there
    allowed: Tensor  # Bool, broadcast against `weights`
    places: Tensor  # Long[B, R] logical offset of each row inside the chunk
    known: Tensor  # Bool[B, R]: False where a sample has fewer rows


def read_last(step: Step, count: int, query: Tensor, key: Tensor, mask: Tensor | None, **kwargs: Any) -> LastRows:
    """Explicit attention of the last rows, at most `count`, that belong to the prompt."""
    last, known = last_prompt_rows(step, count) or (None, None)
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    log = step.current(step.stage).log
    if last is None or known is None:
        rows = query[:, :, -count:]
        if mask is not None and mask.ndim == 4:
            mask = mask[:, :, -count:, : key.shape[2]]
        places = log[:, -rows.shape[2] :]
        known = torch.ones_like(places, dtype=torch.bool)
    else:
        batch = torch.arange(query.shape[0], device=query.device)[:, None]
        rows = query.transpose(1, 2)[batch, last].transpose(1, 2)
        mask = row_mask(mask, last, batch, query.shape[2], key.shape[2])
        places = log.gather(1, last.to(log.device))
    logits, blocked = masked_logits(rows.float(), key.float(), mask, scaling, kwargs.get("softcap"))
    allowed = torch.ones_like(logits[:, :1], dtype=torch.bool) if blocked is None else ~blocked
    known = known.to(logits.device)
    weights = masked_softmax(logits, blocked) * known[:, None, :, None]
    return LastRows(weights, allowed, places.to(logits.device), known)


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
    rows, mask = step.current(step.stage), padding(step)
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
