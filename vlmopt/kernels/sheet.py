"""Lay out maps side by side on one sheet: title, axes with their ticks, captions, and what the colours mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HIDDEN, SKIPPED, TOUCHED, WHOLE = (232, 232, 236), (255, 255, 255), (166, 200, 236), (8, 48, 107)
INK, PALE = (40, 44, 52), (110, 116, 128)
LEFT, TOP, RIGHT = 58, 64, 22  # pixels beside and above a map
AXIS, CAPTION, LEGEND = 40, 24, 32  # below it: ticks and name of the axis; caption; below all: legend
STEPS = 4  # ticks on an axis, beside the one at 0


@dataclass(frozen=True, eq=False)
class Panel:
    """One map: cells that are read and cells that may be, [T, N]; the axes are `rows` and `keys` long."""

    kept: np.ndarray
    visible: np.ndarray
    rows: int
    keys: int
    heading: str
    caption: str
    axes: tuple[str, str]  # names of rows and keys


def origin(number: int, size: int) -> tuple[int, int]:
    """Return x and y of the upper left corner of a panel's map of `size` pixels."""
    return LEFT + number * (LEFT + size + RIGHT), TOP


def sheet(panels: Sequence[Panel], title: str, size: int) -> Image.Image:
    """Draw all panels, maps of `size` pixels a side, RGB."""
    width = len(panels) * (LEFT + size + RIGHT)
    image = Image.new("RGB", (width, TOP + size + AXIS + CAPTION + LEGEND), SKIPPED)
    draw = ImageDraw.Draw(image)
    draw.text((LEFT, 10), title, fill=INK, font=ImageFont.load_default(16))
    for number, panel in enumerate(panels):
        place(image, panel, *origin(number, size), size)
    legend(image, LEFT, TOP + size + AXIS + CAPTION + 4)
    return image


def place(image: Image.Image, panel: Panel, x: int, y: int, size: int) -> None:
    """Draw one panel, its map from (x, y) on."""
    draw, font, small = ImageDraw.Draw(image), ImageFont.load_default(14), ImageFont.load_default(12)
    draw.text((x, y - 22), panel.heading, fill=INK, font=font)
    image.paste(coloured(panel.kept, panel.visible, size), (x, y))
    draw.rectangle((x - 1, y - 1, x + size, y + size), outline=PALE)
    for length, across in ((panel.keys, True), (panel.rows, False)):
        for value in range(0, length + 1, max(1, length // STEPS)):
            at = round(value * size / length)
            if across:
                draw.line((x + at, y + size, x + at, y + size + 4), fill=PALE)
                draw.text((x + at, y + size + 6), str(value), fill=PALE, font=small, anchor="ma")
            else:
                draw.line((x - 5, y + at, x - 1, y + at), fill=PALE)
                draw.text((x - 8, y + at), str(value), fill=PALE, font=small, anchor="rm")
    rows, keys = panel.axes
    draw.text((x + size // 2, y + size + 21), keys, fill=INK, font=small, anchor="ma")
    upright = Image.new("RGB", (size, 16), SKIPPED)
    ImageDraw.Draw(upright).text((size // 2, 8), rows, fill=INK, font=small, anchor="mm")
    image.paste(upright.rotate(90, expand=True), (x - LEFT + 2, y))
    draw.text((x, y + size + AXIS), panel.caption, fill=INK, font=font)


def coloured(kept: np.ndarray, visible: np.ndarray, size: int) -> Image.Image:
    """Paint grey what is hidden, white what is left out, blue what is read: the darker, the more of it."""
    filled = np.divide(kept, visible, out=np.zeros_like(kept), where=visible > 0)[..., None]
    colours = np.array(TOUCHED) + filled * (np.array(WHOLE) - np.array(TOUCHED))
    colours = np.where(filled > 0, colours, SKIPPED)
    colours = np.where(visible[..., None] > 0, colours, HIDDEN)
    finer = Image.Resampling.NEAREST if max(kept.shape) <= size else Image.Resampling.BOX
    return Image.fromarray(colours.round().astype(np.uint8)).resize((size, size), finer)


def legend(image: Image.Image, x: int, y: int) -> None:
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    middle = tuple((a + b) // 2 for a, b in zip(TOUCHED, WHOLE, strict=True))
    for colours, text in (
        ((TOUCHED, middle, WHOLE), "read, little to all of it"),
        ((SKIPPED,), "left out"),
        ((HIDDEN,), "hidden: later keys, padding"),
    ):
        for colour in colours:
            draw.rectangle((x, y, x + 13, y + 13), fill=colour, outline=PALE)
            x += 13
        draw.text((x + 6, y + 7), text, fill=INK, font=font, anchor="lm")
        x += 24 + round(font.getlength(text))
