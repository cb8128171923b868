"""The figure of a sweep: a metric over its budget, one line a method, the controls and dense for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..records import DENSE
from ..sweep import CONTROLS
from .draw import Dot, Line, Mark, Scene, Text, text_width
from .facts import Axis, Facts, Figure, Metric, Place
from .labels import Rect
from .numbers import number
from .palette import look
from .plane import Plane
from .plots import WIDE, Point, plane_of, points, told, tradeoff

ROW, SIZE, KEY = 18.0, 12.0, 30.0  # of the legend: height of a row, letters, width of a key
STEP = 2.5  # between bars of one cost


class Curve(NamedTuple):
    """A line of a sweep: what it is called, how it looks, and its points by rising ratio."""

    name: str
    ink: str
    shape: str
    control: bool
    points: Sequence[Point]


def costs(facts: Facts, metric: Metric, axis: Axis, size: tuple[float, float] = WIDE) -> Scene:
    """Draw a metric over what it costs: lines where methods were swept, else single policies."""
    return curves(facts, metric, axis, size) if facts.lines else tradeoff(facts, metric, axis, size)


def curves(facts: Facts, metric: Metric, axis: Axis, size: tuple[float, float] = WIDE) -> Scene:
    """Draw the lines of a sweep; every marker stands at its true budget, its 95 % interval close by."""
    width, height = size
    scene = Scene(width, height, f"{metric.title} versus {axis.title[0].lower()}{axis.title[1:]}")
    found = {point.policy: point for point in points(facts, metric, axis)}
    drawn = [curve for curve in lines(facts, found) if curve.points]
    shown = [point for curve in drawn for point in curve.points]
    if not shown:
        scene.told = "Nothing to show."
        scene.marks.append(Text(x=width / 2, y=height / 2, text="nothing measured", anchor="middle"))
        return scene
    dense = facts.figure(DENSE, metric)
    legend, rows = keys(drawn, dense, metric, width)
    top = 34 + ROW * rows
    around = [*shown, *([Point(DENSE, shown[0].place, dense)] if dense else [])]
    plane = plane_of(
        [p._replace(place=middle(p.place)) for p in around], metric, Rect(50, top, width - 14, height - 46)
    )
    frame = plane.frame
    scene.marks += [*plane.axes(4 if width < 450 else 6), *legend]
    scene.marks.append(Text(x=frame.x1, y=height - 8, text=f"{axis.title}, {axis.unit}", anchor="end"))
    scene.marks.append(Text(x=4, y=16, text=metric.full, ink="ink", size=13, bold=True))
    scene.marks.append(Text(x=frame.x1, y=16, text=metric.direction if metric.better else "", anchor="end"))
    if dense:
        y = plane.y(dense.value)
        scene.marks.append(Line(points=[(frame.x0, y), (frame.x1, y)], ink="p0", width=1.4, dashed=True))
    for curve in drawn:
        path = [(plane.x(point.place.value), plane.y(point.figure.value)) for point in curve.points]
        scene.marks.append(Line(points=path, ink=curve.ink, width=1.2 if curve.control else 2.0, dashed=curve.control))
    aside = beside([plane.x(point.place.value) for point in shown])
    for curve in drawn:
        scene.marks += [dot(curve, p, plane, aside[shown.index(p)], told(p, metric, axis)) for p in curve.points]
    parts = [f"{DENSE}: {metric.title} {number(dense.value)}"] if dense else []
    scene.told = "; ".join([*parts, *(told(point, metric, axis) for point in shown)])
    return scene


def lines(facts: Facts, found: Mapping[str, Point]) -> list[Curve]:
    """Return the curves: methods first, in their order, then the controls in grey."""
    made = []
    for name, policies in facts.lines.items():
        ink, shape, control = look_of(facts, policies[0])
        own = [found[policy] for policy in policies if policy in found]
        made.append(Curve(name, ink, shape, control, own))
    return sorted(made, key=lambda curve: curve.control)


def look_of(facts: Facts, policy: str) -> tuple[str, str, bool]:
    """Return ink and shape of a policy, and whether it is a control of a sweep: grey, and hollow."""
    ink, shape = look(facts.style(policy))
    control = bool(facts.lines) and facts.line(policy) in CONTROLS
    return "mute" if control else ink, shape, control


def middle(place: Place) -> Place:
    """Return a place without its spread, which is not drawn."""
    return Place(place.value, place.value, place.value)


def beside(places: Sequence[float]) -> list[float]:
    """Return how far the bar of each marker is moved, so that those of one cost can be told apart."""
    moved = []
    for index, x in enumerate(places):
        alike = [other for other, place in enumerate(places) if abs(place - x) < STEP]
        moved.append(STEP * (alike.index(index) - (len(alike) - 1) / 2))
    return moved


def dot(curve: Curve, point: Point, plane: Plane, aside: float, tip: str) -> Dot:
    x, figure = plane.x(point.place.value), point.figure
    bar = (x + aside, plane.y(figure.high), x + aside, plane.y(figure.low))
    return Dot(
        x=x, y=plane.y(figure.value), ink=curve.ink, shape=curve.shape, hollow=curve.control, bars=(bar,),
        radius=4.5 if curve.control else 5.5, tip=f"{tip}.",
    )  # fmt: skip


def keys(drawn: Sequence[Curve], dense: Figure | None, metric: Metric, width: float) -> tuple[list[Mark], int]:
    """Return the legend below the title, and how many rows it takes."""
    marks: list[Mark] = []
    x, row = 4.0, 0
    names = [(curve.name, curve.ink, curve) for curve in drawn]
    unit = f" {metric.unit}" if metric.unit else ""
    every = [*names, *([(f"{DENSE}, {number(dense.value)}{unit}", "p0", None)] if dense else [])]
    for name, ink, curve in every:
        long = KEY + text_width(name, SIZE) + 16
        if x > 4 and x + long > width:
            x, row = 4.0, row + 1
        y = 34 + ROW * row
        dashed = curve is None or curve.control
        marks.append(Line(points=[(x, y - 4), (x + KEY - 6, y - 4)], ink=ink, width=1.4, dashed=dashed))
        if curve:
            middle = x + (KEY - 6) / 2
            marks.append(Dot(x=middle, y=y - 4, ink=ink, shape=curve.shape, radius=4.5, hollow=curve.control))
        marks.append(Text(x=x + KEY, y=y, text=name, ink="ink", size=SIZE))
        x += long
    return marks, row + 1
