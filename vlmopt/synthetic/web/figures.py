"""Drawings that pages are filled with: charts, landscapes, a street map, as inline SVG in the theme's colours."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

SHADES = ("var(--accent)", "var(--ok)", "var(--warn)", "var(--bad)", "var(--faint)")
GOODS = (  # a mug, a lamp, a chair, a shirt, a bag
    "M100 60H180V150H100zM180 80C215 80 215 125 180 125",
    "M110 40H190L210 95H90zM150 95V160M110 165H190",
    "M110 30H126V105H192V168H178V120H126V168H110z",
    "M110 45L135 35C140 50 160 50 165 35L190 45L215 75L195 88L185 78V165H115V78L105 88L85 75z",
    "M100 75H200L210 165H90zM125 75C125 30 175 30 175 75",
)
SKIES = (
    ("#f7c59f", "#e07a5f"),
    ("#bde0fe", "#7fb2e5"),
    ("#355070", "#1d2b45"),
    ("#d8e2dc", "#a9bcc6"),
    ("#ffcad4", "#b56576"),
)
LANDS = (
    ("#588157", "#3a5a40"),
    ("#6d6875", "#4a4e69"),
    ("#c2a878", "#8a6d3b"),
    ("#457b9d", "#1d3557"),
    ("#84a98c", "#52796f"),
)


def bars(rng: random.Random) -> str:
    count = rng.randint(7, 14)
    width = 300 / count
    parts = []
    for i in range(count):
        height = rng.uniform(18, 112)
        place = f'x="{i * width + 2:.1f}" y="{118 - height:.1f}" width="{width - 4:.1f}" height="{height:.1f}"'
        parts.append(f"<rect {place}/>")
    return _figure(300, 120, _grid() + f'<g fill="var(--accent)">{"".join(parts)}</g>', stretch=True)


def curve(rng: random.Random) -> str:
    lines = [_line(rng, shade) for shade in SHADES[: rng.randint(1, 3)]]
    return _figure(300, 120, _grid() + "".join(lines), stretch=True)


def spark(rng: random.Random) -> str:
    return _figure(300, 120, _line(rng, "var(--accent)"), stretch=True)


def donut(rng: random.Random) -> str:
    shares = [rng.uniform(0.5, 2) for _ in range(rng.randint(3, 5))]
    scale, at, parts = 100 / sum(shares), 0.0, []
    for share, shade in zip(shares, SHADES, strict=False):
        part = share * scale
        parts.append(
            f'<circle cx="60" cy="60" r="44" pathLength="100" fill="none" stroke="{shade}" stroke-width="22" '
            f'stroke-dasharray="{part - 0.8:.2f} {100.8 - part:.2f}" stroke-dashoffset="{-at:.2f}"/>'
        )
        at += part
    return _figure(120, 120, "".join(parts))


def photo(rng: random.Random) -> str:
    """Draw hills before a sky; few colours, so that a screenshot stays small."""
    (high, low), (far, near) = rng.choice(SKIES), rng.choice(LANDS)
    hills = "".join(f'<path fill="{ink}" d="{_hill(rng, level)}"/>' for ink, level in ((far, 105), (near, 140)))
    sky = f'<rect width="300" height="200" fill="{high}"/><rect y="70" width="300" height="130" fill="{low}"/>'
    sun = f'<circle cx="{rng.randint(40, 260)}" cy="{rng.randint(30, 90)}" r="{rng.randint(12, 26)}" fill="#fff3d6"/>'
    return _figure(300, 200, sky + sun + hills, slice_=True)


def goods(rng: random.Random) -> str:
    """Draw an article of a shop before a plain wall."""
    (wall, _), (ink, dark) = rng.choice(SKIES), rng.choice(LANDS)
    back = f'<rect width="300" height="200" fill="{wall}"/>'
    floor = f'<rect y="160" width="300" height="40" fill="{dark}" opacity=".35"/>'
    drawn = f'<path d="{rng.choice(GOODS)}" fill="{ink}" stroke="{dark}" stroke-width="8" stroke-linejoin="round"/>'
    return _figure(300, 200, back + floor + drawn, slice_=True)


def streets(rng: random.Random) -> str:
    """Draw a town from above: blocks, parks, a river, roads."""
    park = "color-mix(in srgb, var(--ok) 30%, var(--panel))"
    water = "color-mix(in srgb, #3b82c4 55%, var(--panel))"
    parts = ['<rect width="1200" height="800" fill="var(--deep)"/>']
    for _ in range(5):
        x, y, w, h = rng.randint(0, 1100), rng.randint(0, 700), rng.randint(80, 220), rng.randint(60, 160)
        parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="12" fill="{park}"/>')
    y0, y1, y2 = (rng.randint(100, 700) for _ in range(3))
    parts.append(f'<path d="M0 {y0}C400 {y1} 800 {y2} 1200 {y0}" fill="none" stroke="{water}" stroke-width="46"/>')
    lines = [f"M{x} 0L{x + rng.randint(-90, 90)} 800" for x in range(60, 1200, rng.randint(90, 130))]
    lines += [f"M0 {y}L1200 {y + rng.randint(-90, 90)}" for y in range(50, 800, rng.randint(80, 120))]
    for width, ink in ((13, "var(--line)"), (10, "var(--panel)")):
        parts.append(f'<path d="{"".join(lines)}" fill="none" stroke="{ink}" stroke-width="{width}"/>')
    return _figure(1200, 800, "".join(parts), slice_=True)


def wave(rng: random.Random) -> str:
    """Draw a sound's envelope."""
    parts = []
    for i in range(100):
        height = 6 + 50 * abs(math.sin(i / rng.uniform(6, 9))) * rng.uniform(0.4, 1)
        parts.append(f"M{i * 6 + 3} {60 - height:.0f}V{60 + height:.0f}")
    return _figure(600, 120, f'<path d="{"".join(parts)}" stroke="var(--accent)" stroke-width="3"/>', stretch=True)


FIGURES: dict[str, Callable[[random.Random], str]] = {
    made.__name__: made for made in (bars, curve, spark, donut, goods, photo, streets, wave)
}


def _line(rng: random.Random, shade: str) -> str:
    y, points = rng.uniform(30, 90), []
    for x in range(0, 301, 20):
        y = min(112.0, max(8.0, y + rng.uniform(-20, 20)))
        points.append(f"{x},{y:.1f}")
    path = " ".join(points)
    pen = f'stroke="{shade}" stroke-width="2" vector-effect="non-scaling-stroke"'
    return f'<polyline points="{path}" fill="none" {pen}/>'


def _grid() -> str:
    path = "".join(f"M0 {y}H300" for y in (1, 30, 60, 90, 119))
    return f'<path d="{path}" stroke="var(--line)" stroke-width="1" vector-effect="non-scaling-stroke"/>'


def _hill(rng: random.Random, level: int) -> str:
    ys = [level + rng.randint(-28, 28) for _ in range(4)]
    return f"M0 200V{ys[0]}C75 {ys[1]} 110 {ys[2]} 160 {ys[3]}S250 {ys[1]} 300 {ys[2]}V200z"


def _figure(width: int, height: int, inside: str, *, stretch: bool = False, slice_: bool = False) -> str:
    fit = ' preserveAspectRatio="none"' if stretch else ' preserveAspectRatio="xMidYMid slice"' if slice_ else ""
    return f'<svg class="fig" viewBox="0 0 {width} {height}"{fit} aria-hidden="true">{inside}</svg>'
