"""Room for the state of features: one value per class, so that nobody keeps a list of everybody's fields."""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeVar

State = TypeVar("State")


class Slots:
    """Base of what features hang their state on; each feature's own file defines the class of its state."""

    @cached_property
    def _slots(self) -> dict[type, Any]:
        return {}

    def slot(self, kind: type[State]) -> State:
        """Return the one value of a class, made on first use; a shallow copy shares it."""
        found: State | None = self._slots.get(kind)
        if found is None:
            found = self._slots[kind] = kind()
        return found

    def find(self, kind: type[State]) -> State | None:
        """Return the value of a class if there is one."""
        return self._slots.get(kind)

    def put(self, state: object) -> None:
        """Make this the value of its class."""
        self._slots[type(state)] = state

    def share(self, other: Slots) -> None:
        """Hold the very values of another, e.g. of the object that this one repeats."""
        vars(self)["_slots"] = other._slots

    def drop(self, kind: type[Any]) -> None:
        """Drop the value of a class."""
        self._slots.pop(kind, None)
