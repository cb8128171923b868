"""The contract of a correction of attention: settings in a frozen dataclass, known under a name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, TypeVar


@dataclass(frozen=True, kw_only=True)
class Correction:
    """Base of every correction; registered with `register`."""

    name: ClassVar[str] = ""  # set by `register`
    reads: ClassVar[str] = "attention"  # what the change depends on, in words, for tables


_methods: dict[str, type[Correction]] = {}
registry: Mapping[str, type[Correction]] = MappingProxyType(_methods)
Method = TypeVar("Method", bound=type[Correction])


def register(name: str) -> Callable[[Method], Method]:
    """Class decorator: make a correction known under `name` (lower case, digits, underscores).

    Raises:
        ValueError: the name is malformed or taken. TypeError: the class is no `Correction`.
    """

    def add(cls: Method) -> Method:
        if not (isinstance(cls, type) and issubclass(cls, Correction)):
            raise TypeError(f"register({name!r}) decorates subclasses of attention_fix.Correction, got {cls!r}")
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
            raise ValueError(f"method name {name!r} must be lower case words joined by underscores, e.g. 'visual_sink'")
        if name in _methods:
            taken = _methods[name]
            raise ValueError(
                f"method name {name!r} is taken by {taken.__module__}.{taken.__qualname__}; choose another"
            )
        cls.name = name
        _methods[name] = cls
        return cls

    return add
