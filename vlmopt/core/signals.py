"""What a method may ask to read. The runtime captures each signal once and shares it among the methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .settings import Configured


@dataclass(frozen=True)
class Signal(Configured):
    """Base of what a method can ask to read."""

    def subset(self, value: Any, index: Any) -> Any:
        """Return the value for the tokens `index` Long[m] alone; as it is here, where it has no axis of tokens."""
        return value
