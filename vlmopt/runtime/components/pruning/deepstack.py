"""Qwen3-VL adds vision features to hidden states between its first layers; after a cut they follow the survivors."""

from __future__ import annotations

from torch import Tensor

from ...call import Session
from ...fitting import Now
from ...hooks.stand_in import StandIn
from ...masks import take_rows
from .record import Overwritten


class DeepStack(StandIn):
    """Stand in for the decoder's `_deepstack_process(hidden_states, visual_pos_masks, visual_embeds)`."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, session.structure.decoder, "_deepstack_process")

    def __call__(self, hidden_states: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor) -> Tensor:
        step = self.session.running_step()
        rows = None if step is None else step.rows.get(step.slot(Now).stage)
        if step is None or rows is None:
            untouched: Tensor = self.original(hidden_states, visual_pos_masks, visual_embeds)
            return untouched
        where = visual_pos_masks.to(hidden_states.device)
        embeds = visual_embeds.to(hidden_states.device, hidden_states.dtype)
        spread = embeds.new_zeros(*where.shape, embeds.shape[-1])
        spread[where] = embeds
        log = rows.log.to(where.device)
        here = where.gather(1, log)
        if rows.valid is not None:
            here = here & rows.valid.to(where.device)
        overwritten = step.slot(Overwritten)
        if overwritten.marker is not None:  # a marker stands for a run, not for the cell whose place it took
            here = here & ~overwritten.marker.to(where.device).gather(1, log)
        if overwritten.merged is not None:  # nor is a merged token the patch whose place it took
            here = here & ~overwritten.merged.to(where.device).gather(1, log)
        added: Tensor = self.original(hidden_states, here, take_rows(spread, log)[here])
        return added
