"""Scenes of coloured shapes on a tinted background."""

from __future__ import annotations

import math
import random

import numpy as np
from PIL import Image, ImageDraw

from .base import Box, Thing, World, check_size, generator
from .questions import ask
from .words import BACKGROUND, CELL, COLOURS, FIRST_SLOT, SECOND_SLOT, SHAPES

SIZES = {"circle": (28, 42, 56), "square": (28, 42, 56), "triangle": (35, 42, 56), "star": (42, 49, 56)}  # pixels
TINTS = ((236, 236, 236), (222, 232, 244), (246, 234, 220), (226, 242, 226), (242, 226, 240), (196, 200, 208))
OWNED, TOUCHED = 0.35, 0.08  # fraction of a cell: from OWNED on it belongs to a shape, below TOUCHED to none


def scene(seed: int, size: tuple[int, int] = (224, 224), *, shapes: int | None = None, questions: int = 12) -> World:
    """Draw a scene.

    Args:
        seed: any integer >= 0; equal arguments give equal images and questions.
        size: (width, height) in pixels, multiples of 14.
        shapes: how many shapes to place (fewer if they do not fit); 1 to 6 at random by default.
        questions: how many questions to ask.
    """
    width, height = check_size(size)
    rng = generator("scene", seed, size)
    objects = _place(rng, width, height, rng.randint(1, 6) if shapes is None else shapes)
    tint = tuple(value + rng.randint(-6, 6) for value in rng.choice(TINTS))
    image, owner = Image.new("RGB", (width, height), tint), Image.new("L", (width, height), 0)
    pencil, marker = ImageDraw.Draw(image), ImageDraw.Draw(owner)
    for number, thing in enumerate(objects, start=1):
        colour = tuple(min(255, max(0, value + rng.randint(-10, 10))) for value in COLOURS[thing.name])
        draw(pencil, thing, colour)
        draw(marker, thing, number)
    cells = cells_under(np.asarray(owner), objects)
    return World(image, ask("scene", objects, (width, height), "", rng, questions), objects, cells)


def _place(rng: random.Random, width: int, height: int, wanted: int) -> list[Thing]:
    """Put shapes near cell corners, 4 px or more apart; colours and shapes repeat often enough to be confusable."""
    colours = rng.sample(list(COLOURS), rng.randint(2, 5))
    objects: list[Thing] = []
    for _ in range(wanted):
        shape = rng.choice(SHAPES)
        for _attempt in range(20):
            side = rng.choice(SIZES[shape])
            x = CELL * rng.randint(0, (width - side) // CELL) + rng.randint(-2, 2)
            y = CELL * rng.randint(0, (height - side) // CELL) + rng.randint(-2, 2)
            x, y = min(max(x, 0), width - side), min(max(y, 0), height - side)
            box = (x, y, x + side, y + side)
            if all(apart(box, other.box, 4) for other in objects):
                objects.append(Thing(rng.choice(colours), shape, box))
                break
    return objects


def apart(a: Box, b: Box, gap: int) -> bool:
    return a[2] + gap <= b[0] or b[2] + gap <= a[0] or a[3] + gap <= b[1] or b[3] + gap <= a[1]


def draw(pencil: ImageDraw.ImageDraw, thing: Thing, fill: int | tuple[int, ...]) -> None:
    x0, y0, x1, y1 = thing.box
    inclusive = (x0, y0, x1 - 1, y1 - 1)
    if thing.sort == "circle":
        pencil.ellipse(inclusive, fill=fill)
    elif thing.sort == "square":
        pencil.rectangle(inclusive, fill=fill)
    elif thing.sort == "triangle":
        pencil.polygon([((x0 + x1) / 2, y0), (x1 - 1, y1 - 1), (x0, y1 - 1)], fill=fill)
    else:
        (cx, cy), outer = thing.centre, (x1 - x0) / 2
        tips = [(outer if i % 2 == 0 else 0.45 * outer, math.pi * (i / 5 - 0.5)) for i in range(10)]
        pencil.polygon([(cx + r * math.cos(a), cy + r * math.sin(a)) for r, a in tips], fill=fill)


def cells_under(owner: np.ndarray, objects: list[Thing]) -> np.ndarray:
    rows, columns = owner.shape[0] // CELL, owner.shape[1] // CELL
    tiles = owner.reshape(rows, CELL, columns, CELL)
    cells = np.full((2, rows, columns), -1, dtype=np.int16)
    cells[1] = SECOND_SLOT.index(BACKGROUND)
    for number in range(1, len(objects) + 1):
        cover = (tiles == number).mean(axis=(1, 3))
        cells[:, (cover >= TOUCHED) & (cover < OWNED)] = -2
    for number, thing in enumerate(objects, start=1):
        owned = (tiles == number).mean(axis=(1, 3)) >= OWNED
        cells[0, owned] = FIRST_SLOT.index(thing.name)
        cells[1, owned] = SECOND_SLOT.index(thing.sort)
    return cells
