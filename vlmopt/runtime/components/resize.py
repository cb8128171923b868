"""The in-model resize control: the tower encodes a smaller image, its features sit spread over the full grid.

Positions and click coordinates stay in the frame of the full image; the cells in between are dropped at layer 0.
"""

from __future__ import annotations

from typing import Any

from ...families import family_of
from ...policy import Policy
from ..call import Session
from ..capture import described
from ..component import Component
from ..smaller_images import ARGUMENTS, ResizePlan, plan_smaller
from ..structure import ModelStructure


class Resizing(Component):
    """Give the tower of every call smaller images."""

    on_single_rows = False

    def __init__(self, session: Session, resizer: Any) -> None:
        super().__init__(session)
        self.resizer = resizer

    @staticmethod
    def check(model: Any, structure: ModelStructure, policy: Policy) -> None:
        for method in policy.active:
            if method.resizes_pixels and not family_of(model.config).patch_grid:
                raise ValueError(
                    f"{method.name}: the vision tower of {model.config.model_type} takes one image size, so resizing "
                    f"saves no tokens; works with: {described(lambda f: f.patch_grid)}"
                )

    @classmethod
    def of(cls, session: Session) -> Resizing | None:
        resizer = next((method for method in session.policy.active if method.resizes_pixels), None)
        return None if resizer is None else cls(session, resizer)

    def plan_encoding(self, modality: str, bound: dict[str, Any]) -> ResizePlan | None:
        """Return how to resize the pixels of this call."""
        if any(bound.get(name) is None for name in ARGUMENTS[modality]):
            return None
        return plan_smaller(self.session, modality, bound, self.resizer.grid)
