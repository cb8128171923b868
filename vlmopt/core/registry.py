"""Names of methods: one registry per kind, filled by a class decorator."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

Kind = TypeVar("Kind")
Method = TypeVar("Method", bound="type[Any]")


class Registry(Mapping[str, type[Kind]], Generic[Kind]):
    """Classes of one kind by name; reads like a dict, grows by `register`."""

    def __init__(self, base: type[Kind]) -> None:
        self.base = base
        self._methods: dict[str, type[Kind]] = {}

    def register(self, name: str) -> Callable[[Method], Method]:
        """Make a class decorator that registers a method under `name` (lower case, digits, underscores).

        Raises:
            ValueError: the name is malformed or taken. TypeError: the class is not of this registry's kind.
        """

        def add(cls: Any) -> Any:
            if not (isinstance(cls, type) and issubclass(cls, self.base)):
                kind = f"{self.base.__module__.rsplit('.', 1)[0]}.{self.base.__name__}"
                raise TypeError(f"register({name!r}) decorates subclasses of {kind}, got {cls!r}")
            if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
                raise ValueError(
                    f"method name {name!r} must be lower case words joined by underscores, e.g. 'div_prune'"
                )
            if name in self._methods:
                taken = self._methods[name]
                raise ValueError(
                    f"method name {name!r} is taken by {taken.__module__}.{taken.__qualname__}; choose another"
                )
            cls.name = name  # type: ignore[attr-defined]
            self._methods[name] = cls
            return cls

        return add

    def __getitem__(self, name: str) -> type[Kind]:
        return self._methods[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)
