"""Around `generate`: a call begins and ends."""

from __future__ import annotations

from typing import Any

import torch

from ..arguments import Request, brings_pixels
from ..call import CALL, STEP, Generation, Session
from ..component import Components
from ..unseen import refuse_unread
from .stand_in import StandIn


class Generate(StandIn):
    """`model.generate` with a ledger around it; arguments and result are the model's own."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, session.model, "generate")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        session = self.session
        if not session.lease.alive:  # restored, while somebody else had wrapped us
            return self.original(*args, **kwargs)
        ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        length = ids.shape[1] if isinstance(ids, torch.Tensor) and ids.ndim == 2 else None
        mask = kwargs.get("attention_mask")
        request = Request(
            length,
            ids if length is not None else None,
            mask.bool() if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None,
            brings_pixels(kwargs),
            branching(session, kwargs),
        )
        call = Generation(session, session.open_ledger(), request)
        for component in session.slot(Components):
            component.open_call(request, kwargs)
        running, open_step = CALL.set(call), STEP.set(None)
        try:
            out = self.original(*args, **kwargs)
            refuse_unread(call)
            sequences = getattr(out, "sequences", out)
            call.ledger.new_tokens = sequences.shape[1] - (length or 0)
            for component in session.slot(Components):
                component.close_call(call)
            call.finish()
            return out
        finally:  # also after Ctrl-C, for which hooks are not called
            STEP.reset(open_step)
            CALL.reset(running)


def branching(session: Session, kwargs: dict[str, Any]) -> str | None:
    """Return what makes a `generate` call try texts that it may not keep; None if nothing does."""
    config = kwargs.get("generation_config") or getattr(session.model, "generation_config", None)

    def setting(name: str) -> Any:
        return kwargs.get(name, getattr(config, name, None))

    if (setting("num_beams") or 1) > 1:
        return "beams"
    assisted = kwargs.get("assistant_model") is not None or setting("prompt_lookup_num_tokens") is not None
    return "assisted decoding" if assisted else None
