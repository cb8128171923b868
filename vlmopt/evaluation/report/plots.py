"""The plots: what a metric costs in tokens or in time, and where the time goes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from .draw import Box, Dot, Line, Scene, Text, text_width
from .facts import Axis, Facts, Figure, Metric, Place
from .labels import Named, Rect, labels
from .numbers import milliseconds, number
from .palette import look
from .plane import Plane, span
from .shown_policies import ShownPolicies

STAGES = ("vision", "scoring", "prefill", "decode")
STAGE_TITLES = {
    "vision": "vision tower",
    "scoring": "scoring",
    "prefill": "prefill",
    "decode": "decode",
    "other": "other",
}
WIDE, NARROW = (560.0, 380.0), (342.0, 330.0)
DRAWING = (760.0, 460.0)


class Point(NamedTuple):
    """A policy in a plot: what it costs and what it is worth."""

    policy: str
    place: Place
    figure: Figure


def points(facts: ShownPolicies, metric: Metric, axis: Axis) -> list[Point]:
    """Return the policies that have both."""
    found = []
    for policy in facts.policies:
        place, figure = facts.place(policy, axis), facts.figure(policy, metric)
        if place and figure:
            found.append(Point(policy, place, figure))
    return found


def front(points: Sequence[Point], better: int) -> list[Point]:
    """Return the points that no other beats: as cheap or cheaper and as good or better, and not the same in both.

    Args:
        points: less of `place` is better.
        better: 1 if more of `figure` is better, -1 if less is.

    Returns:
        By rising cost and so by rising worth.
    """

    def beats(a: Point, b: Point) -> bool:
        cost, worth = b.place.value - a.place.value, better * (a.figure.value - b.figure.value)
        return cost >= 0 and worth >= 0 and (cost > 0 or worth > 0)

    stay = [point for point in points if not any(beats(other, point) for other in points)]
    return sorted(stay, key=lambda point: (point.place.value, better * point.figure.value))


def tradeoff(facts: ShownPolicies, metric: Metric, axis: Axis, size: tuple[float, float] = WIDE) -> Scene:
    """Draw a metric over what it costs: points with 95 % intervals, the Pareto front, names."""
    width, height = size
    scene = Scene(width, height, f"{metric.title} versus {axis.title[0].lower()}{axis.title[1:]}")
    found = points(facts, metric, axis)
    if not found:
        scene.told = "Nothing to show."
        scene.marks.append(Text(x=width / 2, y=height / 2, text="nothing measured", anchor="middle"))
        return scene
    plane = plane_of(found, metric, Rect(50, 34, width - 14, height - 46))
    frame = plane.frame
    scene.marks += plane.axes(4 if width < 450 else 6)
    scene.marks.append(Text(x=frame.x1, y=height - 8, text=f"{axis.title}, {axis.unit}", anchor="end"))
    hint = metric.direction if metric.better else ""
    scene.marks.append(Text(x=4, y=16, text=metric.full, ink="ink", size=13, bold=True))
    scene.marks.append(Text(x=frame.x1, y=16, text=hint, anchor="end"))

    best = front(found, metric.better) if metric.better else []
    scene.told = "; ".join(told(p, metric, axis) for p in found)
    steps: list[Rect] = []
    if best:
        stairs = staircase(plane, best, metric.better)
        ground = (frame.x1, stairs[0][1])
        scene.marks.append(Line(points=[*stairs, ground], ink="area", fill=True))
        scene.marks.append(Line(points=stairs, ink="front", width=1.6, dashed=True))
        steps = [thin(*a, *b) for a, b in pairwise(stairs)]
        scene.told += ". Pareto front: " + ", ".join(p.policy for p in best)
    dots, names = [], []
    for p in found:
        ink, shape = look(facts.style(p.policy))
        x, y = plane.x(p.place.value), plane.y(p.figure.value)
        left, right = plane.x(p.place.low), plane.x(p.place.high)
        bars = [(x, plane.y(p.figure.high), x, plane.y(p.figure.low))] + ([(left, y, right, y)] if right > left else [])
        tip = told(p, metric, axis) + "." + (" On the Pareto front." if p in best else "")
        dots.append(Dot(x=x, y=y, ink=ink, shape=shape, hollow=bool(best) and p not in best, bars=tuple(bars), tip=tip))
        names.append(Named(x, y, p.policy, ink, tuple(thin(*bar) for bar in bars)))
    scene.marks += [*dots, *labels(names, Rect(frame.x0, frame.y0 - 10, frame.x1, frame.y1), steps)]
    return scene


def plane_of(found: Sequence[Point], metric: Metric, frame: Rect) -> Plane:
    """Return a plane with room for all points and their intervals."""
    y0, y1 = span([v for p in found for v in (p.figure.low, p.figure.high)], zero=False)
    if metric.unit == "%":
        y0, y1 = max(y0, -2.0), min(y1, 102.0)
    x0, x1 = span([v for p in found for v in (p.place.low, p.place.high)], zero=True)
    return Plane(frame, x0, x1, y0, y1)


def staircase(plane: Plane, best: Sequence[Point], better: int) -> list[tuple[float, float]]:
    """Return the corners of what the Pareto front bounds, from the ground up to its right end."""
    frame = plane.frame
    stairs = [(plane.x(best[0].place.value), plane.y(best[0].figure.value))]
    for p in best[1:]:
        x, y = plane.x(p.place.value), plane.y(p.figure.value)
        stairs += [(x, stairs[-1][1]), (x, y)]
    ground = frame.y1 if better > 0 else frame.y0
    return [(stairs[0][0], ground), *stairs, (frame.x1, stairs[-1][1])]


def thin(x0: float, y0: float, x1: float, y1: float) -> Rect:
    """Return what a line covers."""
    return Rect(min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1)


def told(p: Point, metric: Metric, axis: Axis) -> str:
    unit = "" if not metric.unit else " %" if metric.unit == "%" else f" {metric.unit}"
    figure = f"{number(p.figure.value)}{unit} (95 %: {number(p.figure.low)} to {number(p.figure.high)})"
    if axis.unit != "ms":
        return f"{p.policy}: {metric.title} {figure}; {number(p.place.value)} {axis.unit}"
    spread = f"{milliseconds(p.place.low)} to {milliseconds(p.place.high)}"
    return f"{p.policy}: {metric.title} {figure}; {milliseconds(p.place.value)} ms (p20 to p80: {spread})"


def stage_times(facts: Facts, policy: str, whole: bool) -> dict[str, float]:
    """Return milliseconds per stage, medians over batches; "other" is what they leave of the median of the whole."""
    latency = facts.summary["policies"][policy]["latency"]
    names = STAGES if whole else STAGES[:-1]
    times = {name: latency[f"{name}_ms"]["median"] for name in names if latency[f"{name}_ms"]}
    total = latency["total_ms" if whole else "ttft_ms"]
    if total:
        times["other"] = max(0.0, total["median"] - sum(times.values()))
    return times


def stages(facts: Facts, *, whole: bool, width: float = WIDE[0]) -> Scene:
    """Draw one bar per policy, a piece per stage, to the first token or to the end of the answer."""
    what = "of the whole answer" if whole else "to the first token"
    times = {policy: stage_times(facts, policy, whole) for policy in facts.policies}
    scene = Scene(width, 0, f"Time {what} by stage")
    scene.marks.append(Text(x=4, y=16, text=f"Time {what}, ms", ink="ink", size=13, bold=True))
    longest = max((sum(parts.values()) for parts in times.values()), default=0.0)
    x, top, row = 4.0, 29.0, 40.0
    for name in dict.fromkeys(stage for stage in (*STAGES, "other") if any(one.get(stage) for one in times.values())):
        if x + 15 + text_width(STAGE_TITLES[name], 12) > width:
            x, top = 4.0, top + 18
        scene.marks.append(Box(x=x, y=top, width=11, height=11, ink=name))
        scene.marks.append(Text(x=x + 15, y=top + 10, text=STAGE_TITLES[name]))
        x += 29 + text_width(STAGE_TITLES[name], 12)
    top += 27
    scene.height = top + row * len(times) + 6
    described = []
    for number_, (policy, parts) in enumerate(times.items()):
        y, x = top + row * number_, 4.0
        latency = facts.summary["policies"][policy]["latency"]["total_ms" if whole else "ttft_ms"]
        total = latency["median"] if latency else sum(parts.values())
        written = f"{milliseconds(total)} ms" if parts else "not measured"
        scene.marks.append(Text(x=4, y=y + 12, text=policy, ink="ink"))
        scene.marks.append(Text(x=width - 4, y=y + 12, text=written, ink="ink", anchor="end"))
        scene.marks.append(Box(x=4, y=y + 18, width=width - 8, height=14, ink="grid"))
        for name, value in parts.items():
            long = value / longest * (width - 8) if longest else 0.0
            if long > 0.2:
                share = f"{100 * value / total:.0f} % of {milliseconds(total)} ms"
                tip = f"{policy}: {STAGE_TITLES[name]} {milliseconds(value)} ms; {share}"
                scene.marks.append(Box(x=x, y=y + 18, width=long, height=14, ink=name, tip=tip))
            x += long
        pieces = ", ".join(f"{STAGE_TITLES[name]} {milliseconds(value)}" for name, value in parts.items())
        described.append(f"{policy}: {written} ({pieces})" if parts else f"{policy}: {written}")
    scene.told = "; ".join(described)
    return scene
