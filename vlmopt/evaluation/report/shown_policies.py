"""What a plot asks of the policies that it shows; the facts of a run have it, and those of a search."""

from __future__ import annotations

from typing import Protocol

from .facts import Axis, Figure, Metric, Place


class ShownPolicies(Protocol):
    """Policies in their order, and where each of them lies."""

    @property
    def policies(self) -> list[str]: ...

    def place(self, policy: str, axis: Axis) -> Place | None: ...

    def figure(self, policy: str, metric: Metric) -> Figure | None: ...

    def style(self, policy: str) -> int:
        """Return the number of a policy's colour and marker; dense is 0."""
        ...
