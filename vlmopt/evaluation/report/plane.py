"""The plane of a plot: where values lie on the drawing, and its axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .draw import Line, Text
from .labels import Rect
from .numbers import number


class Plane(NamedTuple):
    """Values x0..x1 across and y0..y1 up, in a frame."""

    frame: Rect
    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        """Return where a value lies across."""
        return self.frame.x0 + (value - self.x0) / (self.x1 - self.x0) * (self.frame.x1 - self.frame.x0)

    def y(self, value: float) -> float:
        """Return where a value lies in height."""
        return self.frame.y1 - (value - self.y0) / (self.y1 - self.y0) * (self.frame.y1 - self.frame.y0)

    def axes(self, most: int) -> list[Line | Text]:
        """Draw lines and numbers of both axes, about `most` numbers across."""
        frame, marks = self.frame, list[Line | Text]()
        across, up = ticks(self.x0, self.x1, most), ticks(self.y0, self.y1, 5)
        for value in up:
            y = self.y(value)
            marks.append(Line(points=[(frame.x0, y), (frame.x1, y)], ink="grid"))
            marks.append(Text(x=frame.x0 - 7, y=y + 4, text=tick(value, up[1] - up[0]), anchor="end"))
        for value in across:
            x = self.x(value)
            marks.append(Line(points=[(x, frame.y1), (x, frame.y1 + 4)], ink="mute"))
            marks.append(Text(x=x, y=frame.y1 + 18, text=tick(value, across[1] - across[0]), anchor="middle"))
        marks.append(Line(points=[(frame.x0, frame.y1), (frame.x1, frame.y1)], ink="mute"))
        return marks


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return round numbers inside, about `count` of them and at least two."""
    unit = 10 ** math.floor(math.log10((high - low) / count))
    steps = [unit * factor for factor in (1, 2, 5, 10)]
    wide = next(place for place, step in enumerate(steps) if (high - low) / step <= count + 0.5)
    found = inside(low, high, steps[wide])
    return found if len(found) > 1 else inside(low, high, steps[wide - 1])


def inside(low: float, high: float, step: float) -> list[float]:
    """Return the multiples of a step from `low` to `high`."""
    return [step * n for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def tick(value: float, step: float) -> str:
    return number(value, max(0, -math.floor(math.log10(step) + 1e-9)))


def span(values: Sequence[float], *, zero: bool) -> tuple[float, float]:
    """Return room for values with some air; from 0 if `zero` and they are not far from it."""
    low, high = min(values), max(values)
    air = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return (0.0 if zero and 0 <= low < 0.6 * high else low - air), high + air
