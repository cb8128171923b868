"""The in-model resize control: the tower encodes a smaller picture, its features sit spread over the full grid.

Positions and click coordinates stay in the frame of the full picture; the cells in between are dropped at layer 0.
"""

from __future__ import annotations

from typing import Any

from ..call import Component, Session
from ..smaller import ARGUMENTS, ResizePlan, smaller


class Resizing(Component):
    """The tower of every call is given smaller pictures."""

    @staticmethod
    def wanted(session: Session) -> bool:
        return any(method.resizes_pixels for method in session.selectors)

    def plan_encoding(self, modality: str, bound: dict[str, Any]) -> ResizePlan | None:
        """How to resize the pixels of this call."""
        if any(bound.get(name) is None for name in ARGUMENTS[modality]):
            return None
        resizer: Any = next(method for method in self.session.selectors if method.resizes_pixels)
        return smaller(self.session, modality, bound, resizer.grid)
