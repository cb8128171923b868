"""Around `generate`: a call begins and ends."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from ..arguments import Request, brings_pixels, by_name, images_in
from ..call import CALL, STEP, Generation, Session
from ..component import Components
from ..unseen import refuse_unread
from .compiled import forbid, idle
from .stand_in import StandIn


class Generate(StandIn):
    """`model.generate` with a ledger around it; arguments and result are the model's own."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, session.model, "generate")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        session = self.session
        if not session.lease.alive:  # restored, while somebody else had wrapped us
            return self.original(*args, **kwargs)
        given = by_name(inspect.signature(self.original), *args, **kwargs) if args else kwargs
        ids = given.get("input_ids", given.get("inputs", args[0] if args else None))
        ids = ids if isinstance(ids, torch.Tensor) and ids.ndim == 2 else None  # the first argument may be pixels
        pixels = next(iter(images_in(given)), None)
        if ids is None and pixels is not None and session.family.prompt is not None:
            kwargs["input_ids"] = ids = session.family.prompt(session.model.config, pixels)
        length = None if ids is None else ids.shape[1]
        mask = kwargs.get("attention_mask")
        request = Request(
            length,
            ids,
            mask.bool() if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None,
            brings_pixels(given),
            branching(session, kwargs),
        )
        call = Generation(session, session.open_ledger(), request)
        for component in session.slot(Components):
            component.open_call(request, kwargs)
        if not idle(session):
            forbid(session, kwargs)
        running, open_step = CALL.set(call), STEP.set(None)
        try:
            out = self.original(*args, **kwargs)
            refuse_unread(call)
            sequences = getattr(out, "sequences", out)
            call.ledger.new_tokens = sequences.shape[1] - (length or 0)
            if not call.ledger.decode_steps:  # compiled ones pass unseen
                call.ledger.decode_steps = max(call.ledger.new_tokens - 1, 0)
            for component in session.slot(Components):
                component.close_call(call)
            call.finish()
            return out
        finally:  # also after Ctrl-C, for which hooks are not called
            STEP.reset(open_step)
            CALL.reset(running)


class ContinuousBatching(StandIn):
    """`init_continuous_batching`, which `generate_batch` begins with: a policy cannot act there, and says so."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, session.model, "init_continuous_batching")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.session.lease.alive and self.session.slot(Components):
            raise ValueError(
                "generate_batch and continuous batching take token ids alone, without images, and keep keys in pages "
                "that no policy acts on: call vlmopt.restore(model) first, or model.generate(**inputs)"
            )
        return self.original(*args, **kwargs)


def branching(session: Session, kwargs: dict[str, Any]) -> str | None:
    """Return what makes a `generate` call try texts that it may not keep; None if nothing does."""
    config = kwargs.get("generation_config") or getattr(session.model, "generation_config", None)

    def setting(name: str) -> Any:
        return kwargs.get(name, getattr(config, name, None))

    if (setting("num_beams") or 1) > 1:
        return "beams"
    assisted = kwargs.get("assistant_model") is not None or setting("prompt_lookup_num_tokens") is not None
    return "assisted decoding" if assisted else None
