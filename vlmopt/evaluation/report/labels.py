"""Place names beside the points of a plot, so that they cover neither one another nor the points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .draw import Line, Text, text_width

SIZE = 12.0
REACH = (11.0, 20.0, 32.0, 46.0, 62.0)  # distances that are tried; beyond the second a thin line leads back
DIRECTIONS = ((1, 0), (-1, 0), (0, -1), (0, 1), (0.8, -0.8), (-0.8, -0.8), (0.8, 0.8), (-0.8, 0.8))


class Rect(NamedTuple):
    """A rectangle by two opposite corners."""

    x0: float
    y0: float
    x1: float
    y1: float

    def shared(self, other: Rect) -> float:
        """Return the common area."""
        across = min(self.x1, other.x1) - max(self.x0, other.x0)
        down = min(self.y1, other.y1) - max(self.y0, other.y0)
        return across * down if across > 0 and down > 0 else 0.0

    @property
    def area(self) -> float:
        return (self.x1 - self.x0) * (self.y1 - self.y0)


class Named(NamedTuple):
    """A point, its name and ink, and the lines through it (error bars) that a name should not cover."""

    x: float
    y: float
    name: str
    ink: str
    bars: tuple[Rect, ...] = ()


def labels(points: Sequence[Named], frame: Rect, lines: Sequence[Rect] = ()) -> list[Line | Text]:
    """Place every name where it covers least among the places that are tried, from left to right.

    `lines` are in the way, too.
    """
    taken = [Rect(p.x - 7, p.y - 7, p.x + 7, p.y + 7) for p in points]
    thin = [*lines, *(bar for p in points for bar in p.bars)]
    marks: list[Line | Text] = []
    for p in sorted(points):
        _, reach, box = min(
            (_cost(box, reach, frame, taken, thin), reach, box)
            for reach in REACH
            for box in (_box(p, reach, *direction) for direction in DIRECTIONS)
        )
        taken.append(box)
        if reach > REACH[1]:
            end = (min(max(p.x, box.x0), box.x1), min(max(p.y, box.y0), box.y1))
            marks.append(Line(points=[(p.x, p.y), end], ink=p.ink, width=0.7))
        marks.append(Text(x=box.x0 + 2, y=box.y1 - 4, text=p.name, ink=p.ink, size=SIZE))
    return marks


def _cost(box: Rect, reach: float, frame: Rect, taken: Sequence[Rect], thin: Sequence[Rect]) -> float:
    outside = box.area - box.shared(frame)
    return reach + 3 * outside + 2 * sum(map(box.shared, taken)) + 0.5 * sum(map(box.shared, thin))


def _box(p: Named, reach: float, dx: float, dy: float) -> Rect:
    width, height = text_width(p.name, SIZE) + 4, SIZE + 4
    x = p.x + dx * reach + (0 if dx > 0 else -width if dx < 0 else -width / 2)
    y = p.y + dy * reach - height / 2
    return Rect(x, y, x + width, y + height)
