"""At the outer model: a forward begins, says where visual tokens may be, and ends."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import compat
from ..arguments import OuterArguments, by_name, images_in
from ..call import CALL, STEP, Call, Forward, Session
from ..component import Components
from ..unseen import refuse_undecoded
from .compiled import passes
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
        if passes(session, bound, bound.get("input_ids")):
            return self.original(*args, **kwargs)
        generating = session.running_call()
        call = self.call_of(generating, bound)
        self.note(call, bound)
        running, open_step = CALL.set(call), STEP.set(None)
        try:
            out = self.original(*args, **kwargs)
            if call is not generating:
                refuse_undecoded(call)
                if isinstance(call, Forward):
                    for component in session.slot(Components):
                        component.close_call(call)
                    call.finish()
            return out
        finally:
            STEP.reset(open_step)
            CALL.reset(running)

    def call_of(self, running: Call | None, bound: Mapping[str, Any]) -> Call:
        """Return the running `generate`; a new call for a bare forward, or for one of another sequence inside it."""
        if running is None or isinstance(running, Forward):
            return Forward(self.session, self.session.open_ledger())
        aside = running.aside(compat.cache_in(bound), bound.get("input_ids"), bound)
        return running.beside() if aside else running

    def placeholders(self, embeds: Tensor) -> Tensor:
        """Return Long[B, L]: ids of the visual tokens among embeddings, -1 elsewhere; models tell them likewise."""
        structure = self.session.structure
        ids = torch.full(embeds.shape[:2], -1, device=embeds.device)
        for token in structure.visual_ids:
            row = structure.outer.get_input_embeddings()(torch.tensor([token], device=embeds.device))
            ids[(embeds == row.to(embeds)).all(-1)] = token
        return ids

    def note(self, call: Call, bound: Mapping[str, Any]) -> None:
        """Leave in the call what its decoder pass has to know."""
        asked, ids, progress = ASKED.get(), bound.get("input_ids"), call.progress
        if asked is not None and asked.session is not self.session:
            asked = None
        if asked is not None:
            asked.call = call
        given, targets = dict(bound), None
        if asked is not None:
            targets = asked.targets
            if asked.ids is not None and ids is None:
                given |= {"input_ids": asked.ids, "image_hidden_states": bound.get("inputs_embeds")}
        progress.arguments = OuterArguments(given, targets)
        if progress.arguments.embeds_only and progress.arguments.pixels:
            located = given | {"input_ids": self.placeholders(given["inputs_embeds"])}
            progress.arguments = OuterArguments(located, targets)
        if progress.images is None:
            progress.images = images_in(bound)
        one_row = ids is not None and ids.shape[1] == 1  # no image fits in
        if not one_row and progress.arguments.encodes:
            call.features.clear()  # this forward encodes by itself, in older releases at every uncached step
            for component in self.session.slot(Components):
                component.open_encoding(call)
