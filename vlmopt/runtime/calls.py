"""Where a call begins and ends: around `generate`, around a bare forward, and at its first logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .arguments import brings_pixels
from .call import CALL, STEP, Request, Session
from .corrections import Corrections
from .guidance import branching, guided
from .stand_in import StandIn
from .unseen import refuse_unread


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
        call = session.new_call(request)
        corrections = session.component(Corrections)
        if corrections is not None and corrections.guided:
            kwargs["logits_processor"] = guided(corrections.guided, kwargs, request.branches)
        running, open_step = CALL.set(call), STEP.set(None)
        try:
            out = self.original(*args, **kwargs)
            refuse_unread(call)
            sequences = getattr(out, "sequences", out)
            call.new_tokens = sequences.shape[1] - (length or 0)
            call.finish()
            return out
        finally:  # also after Ctrl-C, for which hooks are not called
            STEP.reset(open_step)
            CALL.reset(running)


class CloseForward:
    """Ends the call of a bare forward, also when it raised."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = self.session.running_call()
        if call is not None and not call.by_generate:
            CALL.set(call.around)
            call.around = None
            if output is not None:
                call.finish()


class FirstToken:
    """Marks when the first logits of a call exist: the end of TTFT."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = self.session.running_call()
        if call is not None and call.by_generate and call.prompt_done and call.first_token is None:
            call.close_prompt()
