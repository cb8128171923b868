"""At the outer model: a forward begins, says where visual tokens may be, and ends."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from .. import compat
from ..arguments import OuterArguments, by_name
from ..call import CALL, Call, Session
from ..component import Components
from ..unseen import refuse_undecoded
from .head import TARGETS


class OuterHook:
    """Forward pre-hook of the outer model."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.signature = inspect.signature(type(session.structure.outer).forward)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = by_name(self.signature, module, *args, **kwargs) if args else kwargs
        ids = bound.get("input_ids")
        call = self.open_call(compat.cache_in(bound), ids)
        call.arguments = OuterArguments(bound, TARGETS.get())
        TARGETS.set(None)
        one_row = ids is not None and ids.shape[1] == 1  # no image fits in
        if not one_row and call.arguments.encodes:
            call.features.clear()  # this forward encodes by itself, in older releases at every uncached step
            for component in self.session.slot(Components):
                component.open_encoding(call)

    def open_call(self, cache: Any, ids: Tensor | None) -> Call:
        """Return the running `generate` of this session; else a new call, for a bare forward or another sequence."""
        call = self.session.running_call()
        if call is not None and call.by_generate:
            if not call.aside(cache, ids):
                return call
            new = Call(self.session, call.clock, by_generate=True, around=call, beside=True)
        else:
            around = CALL.get() if call is None else call.around  # an earlier forward of ours was interrupted
            new = self.session.new_call(around=around)
        CALL.set(new)
        return new


class CloseForward:
    """End the call of a bare forward or of one beside `generate`, also when it raised."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = self.session.running_call()
        if call is not None and (call.beside or not call.by_generate):
            CALL.set(call.around)
            call.around = None
            if output is not None:
                refuse_undecoded(call)
                if not call.beside:
                    for component in self.session.slot(Components):
                        component.close_call(call)
                    call.finish()
