"""At the outer model: a forward begins, says where visual tokens may be, and ends."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .. import compat
from ..arguments import OuterArguments, brings_pixels, by_name, carries_pixels, images_in
from ..call import CALL, STEP, Call, Session
from ..components.tower_pruning import Patches
from ..unseen import refuse_undecoded
from .head import ASKED
from .stand_in import StandIn


class Outer(StandIn):
    """`forward` of the outer model, by whatever way it is reached; what it opens is closed, after Ctrl-C too."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, session.structure.outer, "forward")
        self.__signature__ = inspect.signature(self.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        session = self.session
        if not session.lease.alive:
            return self.original(*args, **kwargs)
        bound = by_name(self.__signature__, *args, **kwargs) if args else kwargs
        asked_for, images = session.running_call(), images_in(bound)
        call = self.call_of(asked_for, bound, images)
        call.images = call.images or images
        self.note(call, bound)
        running, open_step = CALL.set(call), STEP.set(None)
        try:
            out = self.original(*args, **kwargs)
            if call is not asked_for:
                refuse_undecoded(call)
                if not call.beside:
                    call.finish()
            return out
        finally:
            STEP.reset(open_step)
            CALL.reset(running)

    def call_of(self, running: Call | None, bound: Mapping[str, Any], images: list[Tensor]) -> Call:
        """The running `generate`; a new call for a bare forward, or for one of another sequence inside `generate`."""
        if running is None or not running.by_generate:
            return self.session.new_call()
        if running.aside(compat.cache_in(bound), bound.get("input_ids"), images):
            return Call(self.session, running.clock, by_generate=True, beside=True)
        return running

    def note(self, call: Call, bound: Mapping[str, Any]) -> None:
        """Leave in the call what its decoder pass has to know."""
        encodes = brings_pixels(bound)
        if encodes:
            call.features.clear()  # this forward encodes by itself, in older releases at every uncached step
            call.page.slot(Patches).clear()
        mask, ids, asked = bound.get("attention_mask"), bound.get("input_ids"), ASKED.get()
        if asked is not None and asked.session is not self.session:
            asked = None
        if asked is not None:
            asked.reached = True
        call.arguments = OuterArguments(
            input_ids=ids,
            attention_mask2d=mask if isinstance(mask, Tensor) and mask.ndim == 2 else None,
            pixels=any(carries_pixels(name, value) for name, value in bound.items()),
            embeds_only=ids is None and bound.get("inputs_embeds") is not None,
            encodes=encodes,
            names=tuple(name for name, value in bound.items() if value is not None),
            targets=None if asked is None else asked.targets,
        )
