"""Instance attributes that stand in for methods of a module while it is optimized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..call import Session


class StandIn:
    """Base of stand-ins, by module and name: a bound method would come back from a pickle as the stand-in itself."""

    def __init__(self, session: Session, module: nn.Module, name: str) -> None:
        self.session, self.module, self.name = session, module, name
        self.other: Callable[..., Any] | None = module.__dict__.get(name)  # somebody else's instance attribute
        self.__name__, self.__doc__ = name, self.original.__doc__

    @property
    def original(self) -> Callable[..., Any]:
        """What is called without us."""
        if self.other is not None:  # also where the class has no such method, as checkpointing functions
            return self.other
        own: Callable[..., Any] = getattr(type(self.module), self.name).__get__(self.module)
        return own

    __wrapped__ = original  # for `inspect.signature`

    def put(self) -> None:
        self.session.undo.append(self.take_back)
        object.__setattr__(self.module, self.name, self)

    def take_back(self) -> None:
        """Undo `put`. What somebody has since put over us stays, and reaches the module's own method through us."""
        if vars(self.module).get(self.name) is not self:
            return
        if self.other is None:
            del vars(self.module)[self.name]
        else:
            object.__setattr__(self.module, self.name, self.other)
