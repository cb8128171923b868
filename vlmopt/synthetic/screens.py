"""User-interface screens: a title bar and labelled widgets on a 14-px grid, in a light or a dark theme."""

from __future__ import annotations

import functools
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .base import Box, Thing, World, check_size, generator
from .questions import ask
from .words import BACKGROUND, CELL, FIRST_SLOT, KINDS, LABELS, SECOND_SLOT, THEMES, TITLE, TITLES

FONT_SIZE = 14  # pixels
PAPER = {
    "light": ((250, 250, 250), (238, 242, 248), (250, 246, 238)),
    "dark": ((30, 32, 38), (24, 28, 44), (44, 40, 42)),
}
INK = {"light": (20, 20, 20), "dark": (236, 236, 236)}
BAR = {"light": (206, 212, 222), "dark": (70, 74, 88)}
ACCENTS = ((36, 92, 190), (28, 128, 84), (150, 60, 120), (90, 96, 110))
LINK = {"light": (20, 70, 200), "dark": (130, 180, 255)}
EDGE = {"light": (120, 124, 132), "dark": (150, 154, 164)}
TEXT_LEFT = {"checkbox": 24, "field": 8, "link": 4}  # pixels from the widget's left edge; the other kinds are centred
BAR_ROWS = 2


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)


def screen(seed: int, size: tuple[int, int] = (224, 224), *, widgets: int | None = None, questions: int = 12) -> World:
    """Draw a screen; arguments as for `scenes.scene`, with 2 to 7 widgets by default."""
    width, height = check_size(size)
    rng = generator("screen", seed, size)
    theme, title = rng.choice(THEMES), rng.choice(TITLES)
    image = Image.new("RGB", (width, height), rng.choice(PAPER[theme]))
    pencil = ImageDraw.Draw(image)
    pencil.rectangle((0, 0, width - 1, BAR_ROWS * CELL - 1), fill=BAR[theme])
    bar = _write(pencil, title, "titlebar", (0, 0, width, BAR_ROWS * CELL), INK[theme], rng)
    for i in range(3):
        pencil.ellipse((width - 14 * i - 12, 10, width - 14 * i - 5, 17), fill=EDGE[theme])
    accent = rng.choice(ACCENTS)
    objects = []
    wanted = rng.randint(2, 7) if widgets is None else widgets
    for label, kind, box in _place(rng, width // CELL, height // CELL, wanted):
        ink = _decorate(pencil, kind, box, theme, accent)
        text_box = _write(pencil, label, kind, box, ink, rng)
        if kind == "link":
            pencil.line((text_box[0], text_box[3] + 2, text_box[2], text_box[3] + 2), fill=ink)
        objects.append(Thing(label, kind, box, text_box))
    heading = Thing(title, TITLE, (0, 0, width, BAR_ROWS * CELL), bar)
    cells = _cells(width // CELL, height // CELL, [heading, *objects])
    asked = ask("screen", objects, (width, height), title, rng, questions)
    return World(image, asked, objects, cells, family="screen", theme=theme)


def _place(rng: random.Random, columns: int, rows: int, wanted: int) -> list[tuple[str, str, Box]]:
    """Choose labels, kinds and boxes; one label appears once, so that it can be clicked without doubt."""
    taken = np.zeros((rows + 1, columns + 1), dtype=bool)
    taken[: BAR_ROWS + 1] = True
    placed = []
    for label in rng.sample(LABELS, min(wanted, len(LABELS))):
        kind = rng.choice(KINDS)
        needed = _font().getlength(label) + TEXT_LEFT.get(kind, 6) + 6
        least = max(4, int(-(-needed // CELL)))
        for _attempt in range(20):
            w, h = rng.randint(least, least + 2), 2
            x, y = rng.randint(0, columns - w), rng.randint(BAR_ROWS, rows - h)
            around = (slice(max(y - 1, 0), y + h + 1), slice(max(x - 1, 0), x + w + 1))
            if not taken[around].any() and x + w <= columns:
                taken[y : y + h, x : x + w] = True
                placed.append((label, kind, (x * CELL, y * CELL, (x + w) * CELL, (y + h) * CELL)))
                break
    return placed


def _decorate(
    pencil: ImageDraw.ImageDraw, kind: str, box: Box, theme: str, accent: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Draw the widget without its label; return the ink for the label."""
    x0, y0, x1, y1 = box
    if kind == "button":
        pencil.rounded_rectangle((x0 + 1, y0 + 2, x1 - 2, y1 - 3), radius=6, fill=accent)
        return (255, 255, 255)
    if kind == "checkbox":
        pencil.rectangle((x0 + 4, y0 + 8, x0 + 15, y0 + 19), outline=INK[theme], width=2)
    elif kind == "field":
        pencil.rectangle((x0 + 1, y0 + 2, x1 - 2, y1 - 3), outline=EDGE[theme], width=1)
    elif kind == "tab":
        pencil.rectangle((x0, y0, x1 - 1, y1 - 1), fill=BAR[theme])
        pencil.rectangle((x0, y1 - 4, x1 - 1, y1 - 1), fill=accent)
    else:
        return LINK[theme]
    return INK[theme]


def _write(
    pencil: ImageDraw.ImageDraw,
    text: str,
    kind: str,
    box: Box,
    ink: tuple[int, int, int],
    rng: random.Random,
) -> Box:
    """Draw a label with ±1 px of jitter; return the box it fills."""
    length = _font().getlength(text)
    inset = TEXT_LEFT.get(kind, (box[2] - box[0] - length) / 2)
    x = box[0] + round(inset) + rng.randint(-1, 1)
    baseline = box[1] + 19 + rng.randint(-1, 1)
    pencil.text((x, baseline), text, fill=ink, font=_font(), anchor="ls")
    return (x, baseline - 11, round(x + length), baseline)


def _cells(columns: int, rows: int, things: list[Thing]) -> np.ndarray:
    """Return the words of the cells.

    Cells under a label carry it; the rest of a widget carries its kind and leaves the label unspecified.
    """
    cells = np.full((2, rows, columns), -1, dtype=np.int16)
    cells[1] = SECOND_SLOT.index(BACKGROUND)
    for thing in things:
        x0, y0, x1, y1 = (side // CELL for side in thing.box)
        cells[0, y0:y1, x0:x1] = -2
        cells[1, y0:y1, x0:x1] = SECOND_SLOT.index(thing.sort)
        left, right = (round(side / CELL) for side in ((thing.text_box or thing.box)[::2]))
        cells[0, y0:y1, left : max(right, left + 1)] = FIRST_SLOT.index(thing.name)
    return cells
