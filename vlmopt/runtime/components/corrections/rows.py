"""Which rows of a step corrections may edit: told apart by absolute position, never by the length of the query."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ... import padding
from ...call import PromptStep, Step
from ...context import Store
from ..marks import Marks


@dataclass(frozen=True, eq=False)
class Editable:
    """Rows of a step that corrections may edit: `index` Long[R], None = all of them; which of them, Bool[B, R]."""

    index: Tensor | None
    kinds: dict[str, Tensor]

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return self.index is None or len(self.index) > 0

    def spread(self, kind: str, width: int) -> Tensor:
        """Return Bool[B, width]: those of a kind among all physical rows."""
        chosen = self.kinds[kind]
        if self.index is None:
            return chosen
        return chosen.new_zeros(len(chosen), width).index_copy_(1, self.index, chosen)


def editable(step: Step, stage: int, width: int) -> Editable:
    """Return the rows of this step that corrections may edit, among the last `width` of a stage; once per step."""
    return step.remember(("editable", stage, width), None, lambda: find_rows(step, stage, width))


def find_rows(step: Step, stage: int, width: int) -> Editable:
    marks = step.slot(Marks)
    seen = marks.seen.to(step.device)
    if seen.shape[0] != step.batch:
        seen = seen.repeat_interleave(step.batch // seen.shape[0])
    if not isinstance(step, PromptStep):
        every = seen[:, None].expand(-1, width)
        return Editable(None, {"text": every, "last": every})
    rows = step.current(stage)
    logical = rows.log[:, -width:].to(step.device)
    valid = padding.real(step)
    real = valid.gather(1, logical)
    if rows.valid is not None:
        real = real & rows.valid[:, -width:].to(step.device)
    end = step.call.request.length
    inside = step.q if end is None else max(end - step.past, 0)  # places of this chunk that belong to the prompt
    place = torch.arange(step.q, device=step.device)
    last_real = torch.where(valid & (place < inside), place, -1).amax(1, keepdim=True)
    if end is not None and step.past + step.q < end:
        last_real = torch.full_like(last_real, step.q)  # the prompt goes on
    last = real & (logical >= last_real) & seen[:, None]
    visual = marks.tables["image", None][:, step.past :].to(step.device) if step.context is not None else None
    text = real & seen[:, None]
    if visual is not None:
        earlier = marks.tables["image", None][:, : step.past].any(1, keepdim=True).to(step.device)
        after = (visual.long().cumsum(1) > 0) | earlier
        text = text & (after & ~visual).gather(1, logical)
    index = (text | last).any(0).nonzero()[:, 0]
    return Editable(index, {"text": text[:, index], "last": last[:, index]})


def generated_keys(step: Step, store: Store, width: int, device: torch.device) -> Tensor:
    """Return Bool[B, width]: key slots of tokens that `generate` produced."""
    end = step.call.request.length
    total = step.stored(store)
    start = max(total - width, 0)
    slots = torch.arange(start, start + width, device=device)
    count = 0 if end is None else max(step.past + step.q - end, 0)
    return ((slots >= total - count) & (slots < total)).expand(step.batch, -1)


def rows_of_mask(
    mask: Tensor | None,
    index: Tensor | None,
    shape: tuple[int, int, int, int],
    device: torch.device,
    window: int | None,
) -> Tensor:
    """Return the 4-D mask of the chosen query rows: the model's own, or the causal one that its absence stands for."""
    batch, _, rows, width = shape
    if mask is not None and mask.ndim == 4:
        mask = mask[..., :width]
        return mask if index is None else mask[:, :, index]
    chosen = torch.arange(rows, device=device) if index is None else index.to(device)
    column, row = torch.arange(width, device=device), (chosen + width - rows)[:, None]
    seen = column <= row
    if window is not None:  # such a mask says nothing of the window, the kernel is told
        seen = seen & (column > row - window)
    if mask is None:
        return seen.expand(batch, 1, -1, -1)
    return seen & mask[:, None, None, -width:].bool()
