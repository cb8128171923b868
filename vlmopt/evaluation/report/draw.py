"""A drawing in a few kinds of marks: SVG on a page (page/figures.html), and here a PNG for a README."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import ClassVar

from PIL import Image, ImageColor, ImageDraw, ImageFont

from .palette import LIGHT

SCALE = 2  # pixels of an image per unit of its drawing
SMOOTH = 2  # and the factor by which lines and shapes are drawn larger first
DASH = 5.0  # units
Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line through points; filled to an area, faintly, if `fill`."""

    kind: ClassVar[str] = "line"
    points: Points
    ink: str
    width: float = 1.0
    dashed: bool = False
    fill: bool = False


@dataclass(frozen=True, kw_only=True)
class Box:
    """A filled rectangle from its upper left corner, with a title to hover for."""

    kind: ClassVar[str] = "box"
    x: float
    y: float
    width: float
    height: float
    ink: str
    tip: str = ""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A marker with its bars, level ones fainter; hollow if `hollow`."""

    kind: ClassVar[str] = "dot"
    x: float
    y: float
    ink: str
    shape: str
    radius: float = 5.5
    hollow: bool = False
    bars: tuple[tuple[float, float, float, float], ...] = ()
    tip: str = ""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text. `anchor`: start, middle or end at x; y is the baseline; `turned` reads upwards."""

    kind: ClassVar[str] = "text"
    x: float
    y: float
    text: str
    ink: str = "mute"
    size: float = 12.0
    anchor: str = "start"
    bold: bool = False
    turned: bool = False


Mark = Line | Box | Dot | Text


@dataclass
class Scene:
    """A drawing. `title` names it, `told` says in words what it shows."""

    width: float
    height: float
    title: str
    told: str = ""
    marks: list[Mark] = field(default_factory=list)


@cache
def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def text_width(text: str, size: float) -> float:
    """Estimate the width in any sans-serif font, on the safe side."""
    return float(font(100).getlength(text)) * size / 100 * 1.1


def outline(dot: Dot) -> Points:
    """Return the corners of a marker; none for a circle."""
    r = dot.radius
    corners = {
        "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
        "up": [(0.0, -1.15), (1.1, 0.8), (-1.1, 0.8)],
        "down": [(0.0, 1.15), (1.1, -0.8), (-1.1, -0.8)],
        "diamond": [(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)],
    }.get(dot.shape, [])
    return [(dot.x + r * x, dot.y + r * y) for x, y in corners]


def png(scene: Scene, colours: dict[str, str] = LIGHT) -> bytes:
    """Render a scene as PNG.

    Lines and shapes are drawn larger first, to be smooth; letters are drawn at their size.
    """
    k = float(SCALE * SMOOTH)
    size = (round(scene.width * SCALE), round(scene.height * SCALE))
    image = Image.new("RGB", (size[0] * SMOOTH, size[1] * SMOOTH), colours["paper"])
    for mark in scene.marks:
        if not isinstance(mark, Text):
            _paint(image, mark, colours, k)
    image = image.resize(size, Image.Resampling.LANCZOS)
    for mark in scene.marks:
        if isinstance(mark, Text):
            _write(image, mark, colours)
    packed = io.BytesIO()
    image.save(packed, "PNG", optimize=True)
    return packed.getvalue()


def _paint(image: Image.Image, mark: Line | Box | Dot, colours: dict[str, str], k: float) -> None:
    draw, ink = ImageDraw.Draw(image), colours[mark.ink]

    def scaled(points: Points) -> Points:
        return [(x * k, y * k) for x, y in points]

    if isinstance(mark, Line) and mark.fill:
        veil = Image.new("L", image.size)
        ImageDraw.Draw(veil).polygon(scaled(mark.points), fill=20)
        image.paste(ink, (0, 0), veil)
    elif isinstance(mark, Line):
        points = dashes(mark.points) if mark.dashed else [mark.points]
        for part in points:
            draw.line(scaled(part), fill=ink, width=round(mark.width * k), joint="curve")
    elif isinstance(mark, Box):
        x0, y0 = mark.x * k, mark.y * k
        draw.rectangle((x0, y0, max(x0, x0 + mark.width * k - k), y0 + mark.height * k), fill=ink)
    else:
        for x0, y0, x1, y1 in mark.bars:
            shade = ink if y0 != y1 else faint(ink, colours["paper"])
            draw.line(scaled([(x0, y0), (x1, y1)]), fill=shade, width=round(1.5 * k))
        corners = scaled(outline(mark))
        fill = colours["paper"] if mark.hollow else ink
        edge, width = (ink, round(2 * k)) if mark.hollow else (colours["paper"], round(k))
        r, x, y = mark.radius * k, mark.x * k, mark.y * k
        if corners:
            draw.polygon(corners, fill=fill, outline=edge, width=width)
        else:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=edge, width=width)


def _write(image: Image.Image, mark: Text, colours: dict[str, str]) -> None:
    letters, anchor = font(mark.size * SCALE), {"start": "ls", "middle": "ms", "end": "rs"}[mark.anchor]
    x, y = mark.x * SCALE, mark.y * SCALE
    if not mark.turned:
        thick = SCALE / 4 if mark.bold else 0
        ink = colours[mark.ink]
        ImageDraw.Draw(image).text((x, y), mark.text, ink, letters, anchor, stroke_width=thick, stroke_fill=ink)
        return
    box = letters.getbbox(mark.text, anchor="ls") if mark.text else (0, 0, 1, 1)
    wide, tall = round(box[2]) + 2, round(mark.size * SCALE * 1.5)
    strip = Image.new("L", (wide, tall))
    ImageDraw.Draw(strip).text((0, tall * 0.75), mark.text, 255, letters, "ls")
    strip = strip.rotate(90, expand=True)
    shift = {"start": wide, "middle": wide / 2, "end": 0}[mark.anchor]
    image.paste(colours[mark.ink], (round(x - tall * 0.75), round(y - shift)), strip)


def faint(ink: str, paper: str) -> tuple[int, ...]:
    """Return the ink at a third of its strength."""
    pairs = zip(ImageColor.getrgb(ink), ImageColor.getrgb(paper), strict=True)
    return tuple((own + 2 * ground) // 3 for own, ground in pairs)


def dashes(points: Points) -> list[Points]:
    """Cut a line into pieces; raster images know no dashes."""
    pieces: list[Points] = []
    for (x0, y0), (x1, y1) in pairwise(points):
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        for number in range(int(length / (2 * DASH)) + 1):
            start, end = 2 * DASH * number, min(2 * DASH * number + DASH, length)
            if length and start < end:
                dx, dy = (x1 - x0) / length, (y1 - y0) / length
                pieces.append([(x0 + dx * start, y0 + dy * start), (x0 + dx * end, y0 + dy * end)])
    return pieces


def coordinate(value: float) -> str:
    """Write a number for SVG, to a tenth of a unit."""
    return f"{value:.1f}".removesuffix(".0")


def coordinates(points: Points) -> str:
    return " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in points)
