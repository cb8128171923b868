"""Which places of a chunk are real, and which belong to the prompt: told by index, never by the query's length."""

from __future__ import annotations

import torch
from torch import Tensor

from .call import Step
from .context import VisualContext


def prompt_places(step: Step, device: torch.device) -> Tensor:
    """Return Bool[B, q]: indices of this step that are real and belong to the prompt."""
    valid, end = real(step).to(device), step.call.request.length
    return valid if end is None else valid & (torch.arange(step.q, device=device) < end - step.past)


def prompt_text(step: Step, context: VisualContext, batch_row: int) -> Tensor:
    """Return Bool[q]: real text of the prompt in this chunk, without what `generate` or a helper appended."""
    visual, mask = context.visual[batch_row], context.attention_mask2d
    end = (step.call.request.length or step.past + step.q) - step.past
    text = ~visual & (torch.arange(step.q, device=visual.device) < end)
    return text if mask is None else text & mask[batch_row]


def real(step: Step) -> Tensor:
    """Return Bool[B, q]: not padding."""

    def find() -> Tensor:
        found = padding(step)
        return torch.ones(step.batch, step.q, dtype=torch.bool, device=step.device) if found is None else found

    return step.remember(("real",), None, find)


def padding(step: Step) -> Tensor | None:
    """Return Bool[B, q] of this chunk's real indices; None when all are."""
    mask = step.arguments.attention_mask2d
    if step.q == 1:
        return None
    if mask is None or mask.shape[1] < step.q or len(mask) != step.batch:
        return None
    mask = mask[:, -step.q :].bool().to(step.device)
    return None if bool(mask.all()) else mask
