"""Sheets full of type: labels and icons as web pages write them, among words that are none, for the tower alone.

A window of a page has one or two labels; a sheet has twenty, in the pages' own faces, sizes and colours.
"""

from __future__ import annotations

import functools
import html
import random
from collections.abc import Iterator

import numpy as np

from vlmopt.synthetic import World
from vlmopt.synthetic.web.fill import Filled
from vlmopt.synthetic.web.icons import ICONS, icon
from vlmopt.synthetic.web.look import FONT_SIZES, FONT_WEIGHTS, FONTS, look
from vlmopt.synthetic.web.parts import texts
from vlmopt.synthetic.web.render import Edges, Renderer, Screen, Text
from vlmopt.synthetic.web.windows import SHARE, Frame, covered
from vlmopt.synthetic.words import BACKGROUND, CELL, FIRST_SLOT, LABELS, SECOND_SLOT

SIZE = (1280, 800)  # pixels of a sheet
BLOCK = (224, 112)  # pixels of one colour, with type of its own
LABELLED, PICTURED = 0.75, 0.2  # fractions of the items that are labels, and of labels that are drawn as icons
NEAR = ("Saved", "Opened", "Printer", "Sender", "Homes", "Nextel", "Copies", "Helper", "Stops", "Starter", "Editor",
        "Named", "Emails", "Closet", "Backup", "Shares", "Undone", "Research", "Logins", "Exits")  # fmt: skip


@functools.cache
def others() -> tuple[str, ...]:
    """Return words that are not labels: the pages' made-up contents, and words that nearly are."""
    made = [text for sort in texts().values() for text in sort if len(text) < 16]
    return tuple(text for text in (*made, *NEAR) if not set(text.split()) & set(LABELS))


def sheet(seed: int) -> Filled:
    """Return a document without controls: blocks side by side, each in one face, size and colour."""
    rng = random.Random(f"sheet/{seed}")
    columns, rows = SIZE[0] // BLOCK[0], -(-SIZE[1] // BLOCK[1])
    blocks = "".join(block(rng, x * BLOCK[0], y * BLOCK[1]) for x in range(columns) for y in range(rows))
    style = "*{margin:0}body{overflow:hidden}div,span{position:absolute}span{white-space:nowrap;line-height:14px}"
    style += ".i{width:1.3em;height:1.3em;margin:calc(7px - .65em) 0;fill:none;stroke:currentColor;stroke-width:2}"
    document = f'<!doctype html><html><head><meta charset="utf-8"><style>{style}</style></head><body>{blocks}</body>'
    return Filled(document, "light", 14)


def block(rng: random.Random, left: int, top: int) -> str:
    values = dict(pair.split(":", 1) for pair in look(rng).style.split(";"))
    ground = rng.choice(("--bg", "--panel", "--deep", "--accent"))
    ink = "--on" if ground == "--accent" else rng.choice(("--ink", "--ink", "--faint", "--accent"))
    size, face = rng.choice(FONT_SIZES), rng.choices(FONTS, FONT_WEIGHTS)[0]
    style = f"background:{values[ground]};color:{values[ink]};font:{rng.choice((400, 400, 600))} {size}px {face}"
    style += f";left:{left}px;top:{top}px;width:{BLOCK[0]}px;height:{BLOCK[1]}px"
    items, x, y = [], CELL, CELL
    while y < BLOCK[1] - CELL:
        labelled = rng.random() < LABELLED
        if rng.random() < PICTURED:
            drawn = rng.choice(LABELS) if labelled else rng.choice([name for name in ICONS if name not in LABELS])
            inside, width = icon(drawn), 2 * size
        else:
            text = rng.choice(LABELS if labelled else others())
            inside, width = html.escape(text), round(0.62 * size * len(text)) + CELL
        if x + width > BLOCK[0]:
            x, y = CELL * rng.randint(0, 1), y + 2 * CELL
            continue
        place = f"left:{x + rng.randint(-1, 1)}px;top:{y + rng.randint(-1, 1)}px"
        items.append(f'<span style="{place}">{inside}</span>')
        x += -(-width // CELL) * CELL + CELL * rng.randint(0, 1)
    return f'<div style="{style}">{" ".join(items)}</div>'


def cells_of(screen: Screen, frame: Frame) -> np.ndarray:
    """Return int16 [2, rows, columns] as in `World.cells`: labels by name, no name elsewhere, edges unspecified."""
    left, top, right, bottom = frame
    columns, rows = (right - left) // CELL, (bottom - top) // CELL
    cells = np.full((2, rows, columns), -1, dtype=np.int16)
    cells[1] = SECOND_SLOT.index(BACKGROUND)

    def whole(box: Edges) -> bool:
        return box[0] >= left and box[1] >= top and box[2] <= right and box[3] <= bottom

    items: list[Text] = [*screen.texts, *screen.icons]
    for item in items:
        for box in item.boxes:
            share = covered(box, frame)
            cells[1][share > 0] = -2
            if item.text in LABELS:
                cells[0][share > 0] = -2
                if whole(box):
                    cells[0][share >= min(SHARE, share.max())] = FIRST_SLOT.index(item.text)
    return cells


def sheets(size: tuple[int, int], count: int, number: int) -> Iterator[World]:
    """Yield worlds without questions, cut from sheets side by side."""
    made, seed = 0, 1_000_000 * number
    with Renderer(SIZE) as renderer:
        while made < count:
            screen, rng = renderer.show(sheet(seed)), random.Random(f"cut/{seed}")
            seed += 1
            for y in range(0, SIZE[1] - size[1], size[1]):
                for x in range(0, SIZE[0] - size[0], size[0]):
                    left, top = x + CELL * rng.randrange(4), y + CELL * rng.randrange(1, 4)
                    frame = (left, top, left + size[0], top + size[1])
                    if made < count:
                        yield World(screen.image.crop(frame), [], [], cells_of(screen, frame), family="screen")
                        made += 1
