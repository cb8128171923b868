"""Around `generate`: a call begins and ends."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .. import compat
from ..arguments import Request, brings_pixels, by_name, images_in
from ..call import CALL, STEP, Generation, Session
from ..component import Components
from ..unseen import refuse_unread
from .compiled import forbid, idle
from .stand_in import StandIn

# Settings by which `generate` has candidates to check.
ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")


class Generate(StandIn):
    """`model.generate` with a ledger around it; arguments and result are the model's own."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, session.model, "generate")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        session = self.session
        if not session.lease.alive:  # restored, while somebody else had wrapped us
            return self.original(*args, **kwargs)
        given = by_name(inspect.signature(self.original), *args, **kwargs) if args else kwargs
        unnamed = given.pop("*", ())  # by a wrapper that passes on what it gets
        request = self.request(given, *unnamed)
        compat.ask_for_cache(session.model, given)
        call = Generation(session, session.open_ledger(), request)
        for component in session.slot(Components):
            component.open_call(request, given)
        if not idle(session):
            forbid(call, given)
        running, open_step = CALL.set(call), STEP.set(None)
        try:
            out = self.original(*unnamed, **given)
            refuse_unread(call)
            sequences = getattr(out, "sequences", out)
            call.ledger.new_tokens = sequences.shape[1] - (request.length or 0)
            if not call.ledger.decode_steps:  # compiled ones pass unseen
                call.ledger.decode_steps = max(call.ledger.new_tokens - 1, 0)
            for component in session.slot(Components):
                component.close_call(call)
            call.finish()
            return out
        finally:  # also after Ctrl-C, for which hooks are not called
            STEP.reset(open_step)
            CALL.reset(running)

    def request(self, given: dict[str, Any], inputs: Any = None, *others: Any) -> Request:
        """Return what a call is asked; where a family names the prompt of pixels alone, it is put into `given`."""
        session = self.session
        ids = given.get("input_ids", given.get("inputs", inputs))
        ids = ids if isinstance(ids, torch.Tensor) and ids.ndim == 2 else None  # the first argument may be pixels
        pixels = next(iter(images_in(given)), None)
        if ids is None and pixels is not None and session.family.prompt is not None:
            given["input_ids"] = ids = session.family.prompt(session.model.config, pixels)
        mask, embeds = given.get("attention_mask"), given.get("inputs_embeds")
        prompts = ids if ids is not None else embeds
        setting = partial(compat.generation_setting, session.model, given)
        return Request(
            None if ids is None else ids.shape[1],
            ids,
            mask.bool() if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None,
            None if prompts is None else len(prompts),
            brings_pixels(given),
            branching(setting),
            tuple(int(i) for name in ("eos_token_id", "pad_token_id") for i in listed(setting(name))),
        )


class PaddingOfIds(StandIn):
    """What `generate` makes its mask with where it is given none; with static caches models see another."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, session.model, compat.MASK_OF_IDS)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mask, call = self.original(*args, **kwargs), self.session.running_call()
        if call is not None and mask.ndim == 2:
            call.progress.mask = mask.bool()
        return mask


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


def branching(setting: Callable[[str], Any]) -> str | None:
    """Return what makes a `generate` call try texts that it may not keep; None if nothing does."""
    if (setting("num_beams") or 1) > 1:
        return "beams"
    asked = map(setting, ASSISTED)
    return "assisted decoding" if any(value is not None and value is not False for value in asked) else None


def listed(ids: Any) -> list[Any]:
    """Return ids, which `generate` takes as one, several or none."""
    ids = ids.tolist() if isinstance(ids, torch.Tensor) else ids
    return [] if ids is None else list(ids) if isinstance(ids, list | tuple) else [ids]
