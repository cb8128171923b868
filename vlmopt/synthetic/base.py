"""What a generated image is made of."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .words import CELL, LARGEST

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, x1 and y1 exclusive


@dataclass(frozen=True)
class Question:
    """One question with its only correct answer; `box` is the region asked about, where there is exactly one."""

    text: str
    answer: str
    kind: str
    box: Box | None = None


@dataclass(frozen=True)
class Thing:
    """One object: `name` is its colour or label, `sort` its shape or widget kind, `text_box` where a label is drawn."""

    name: str
    sort: str
    box: Box
    text_box: Box | None = None

    @property
    def centre(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class World:
    """An image, its objects, questions about it, and the words true of each 14-px cell.

    `cells` is int16 [2, rows, columns]: an index into `words.FIRST_SLOT` (−1: none, −2: unspecified) and one into
    `words.SECOND_SLOT` (−2: unspecified).
    """

    image: Image.Image
    questions: list[Question]
    objects: list[Thing]
    cells: np.ndarray = field(repr=False)
    family: str = "scene"
    theme: str = "light"

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """Refuse sizes that do not divide into cells or leave no room for objects."""
    width, height = size
    for side in (width, height):
        if side % CELL or not 8 * CELL <= side <= LARGEST:
            raise ValueError(
                f"size {size!r}: each side must be a multiple of {CELL} from {8 * CELL} to {LARGEST} pixels"
            )
    return width, height


def generator(family: str, seed: int, size: tuple[int, int]) -> random.Random:
    """Return a random stream for one image alone; the same arguments always give the same image."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
    return random.Random(f"{family}/{size[0]}x{size[1]}/{seed}")
