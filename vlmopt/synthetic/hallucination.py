"""Scenes in which habit and image disagree: objects that keep company, look-alikes in their place, degraded views.

Every class (a colour and a shape) has one partner. Objects stand in twos: a leader, and beside it its partner with
probability `company`, else something that looks like the partner. A model that has learnt the company names the partner
from habit as soon as the image gets hard to read.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .base import Box, Question, Thing, World, check_size, generator
from .questions import article
from .scenes import SIZES, TINTS, apart, cells_under, draw
from .words import CELL, COLOURS, SHAPES

COMPANY = 0.85  # probability that the partner comes along
PARTNER_COLOURS = {"red": "blue", "orange": "green", "yellow": "purple", "cyan": "black"}
PARTNER_SHAPES = {"circle": "star", "square": "triangle"}
ALIKE_COLOURS = {
    "red": "orange", "orange": "red", "yellow": "orange", "green": "cyan",
    "cyan": "green", "blue": "purple", "purple": "blue", "black": "purple",
}  # fmt: skip
ALIKE_SHAPES = {"circle": "square", "square": "circle", "triangle": "star", "star": "triangle"}
DEGRADATIONS: tuple[str, ...] = ("clean", "blur", "contrast", "small")
BLUR = (4.0, 6.5)  # standard deviation in pixels
CONTRAST = (0.33, 0.5)  # what remains of the difference to the background
SMALL = (14, 22)  # pixels a side
GAP = 8  # pixels between partners, about
COUPLES = (2, 3)  # at least and at most; POPE asks about images of more than three objects
ROOM = 224 * 112  # square pixels
DESCRIBE = "Describe the picture."


@dataclass(frozen=True)
class HabitWorld(World):
    """A scene with its degradation; no class is there twice, and every second object stands beside the one before."""

    degradation: str = "clean"

    @property
    def classes(self) -> list[str]:
        return [class_of(thing) for thing in self.objects]


def class_of(thing: Thing) -> str:
    """Return the name that questions and captions use: "red circle"."""
    return f"{thing.name} {thing.sort}"


@functools.cache
def classes() -> tuple[str, ...]:
    """Return all 32 names."""
    return tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)


@functools.cache
def partners() -> dict[str, str]:
    """Map each class to the class that keeps it company: another colour, another shape, and nothing like it."""
    colours, shapes = ({**half, **{b: a for a, b in half.items()}} for half in (PARTNER_COLOURS, PARTNER_SHAPES))
    return {f"{colour} {shape}": f"{colours[colour]} {shapes[shape]}" for colour in COLOURS for shape in SHAPES}


@functools.cache
def couples() -> tuple[tuple[str, str], ...]:
    """Return the 16 couples, most popular first."""
    once = sorted({tuple(sorted(pair)) for pair in partners().items()})
    return tuple((a, b) for a, b in random.Random("couples").sample(once, len(once)))


def alike(name: str, rng: random.Random) -> str:
    """Draw a class easily taken for `name`: its shape in a neighbouring colour, or a similar shape of its colour."""
    colour, shape = name.split()
    return f"{ALIKE_COLOURS[colour]} {shape}" if rng.random() < 0.5 else f"{colour} {ALIKE_SHAPES[shape]}"


def hallucination(
    seed: int,
    size: tuple[int, int] = (224, 224),
    *,
    degradation: str = "clean",
    company: float = COMPANY,
    questions: int = 8,
) -> HabitWorld:
    """Draw a scene of habit.

    Args:
        seed: any integer >= 0; equal arguments give equal images and questions.
        size: (width, height) in pixels, multiples of 14.
        degradation: "clean", "blur", "contrast" or "small"; the strength is drawn from the seed.
        company: probability that an object's partner is in the image too, 0 to 1.
        questions: at most so many: the description first, then whether classes are there.

    Raises:
        ValueError: a bad seed, size, degradation or probability.
    """
    width, height = check_size(size)
    if width * height < ROOM:
        raise ValueError(
            f"size {size!r} has no room for {2 * COUPLES[1]} objects: choose one of {ROOM} square pixels or more"
        )
    if degradation not in DEGRADATIONS:
        raise ValueError(f"degradation {degradation!r} is unknown: choose from {', '.join(DEGRADATIONS)}")
    if not 0 <= company <= 1:
        raise ValueError(f"company must be a probability from 0 to 1, got {company!r}")
    rng = generator("hallucination", seed, size)
    cast = _cast(rng, company)
    objects = _place(rng, cast, width, height, small=degradation == "small")
    tint = tuple(value + rng.randint(-6, 6) for value in rng.choice(TINTS))
    image, owner = Image.new("RGB", (width, height), tint), Image.new("L", (width, height), 0)
    pencil, marker = ImageDraw.Draw(image), ImageDraw.Draw(owner)
    for number, thing in enumerate(objects, start=1):
        colour = tuple(min(255, max(0, value + rng.randint(-10, 10))) for value in COLOURS[thing.name])
        draw(pencil, thing, colour)
        draw(marker, thing, number)
    if degradation == "blur":
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR)))
    elif degradation == "contrast":
        image = Image.blend(Image.new("RGB", image.size, tint), image, rng.uniform(*CONTRAST))
    asked = [describe(objects), *_presence(rng, objects)][:questions]
    cells = cells_under(np.asarray(owner), objects)
    return HabitWorld(image, asked, objects, cells, family="hallucination", degradation=degradation)


def describe(objects: list[Thing]) -> Question:
    """Write the description that the checkpoints were taught: every object once, from left to right."""
    ordered = sorted(objects, key=lambda thing: (thing.centre[0], thing.centre[1]))
    text = ", ".join(f"{article(thing.name)} {class_of(thing)}" for thing in ordered)
    return Question(DESCRIBE, text, "describe")


def is_there(name: str) -> str:
    """Write the question of POPE as the checkpoints were taught it: without "in the image"."""
    return f"Is there {article(name)} {name}?"


def _cast(rng: random.Random, company: float) -> list[str]:
    """Draw the classes of a scene, each once: leaders, popular ones more often, each followed by the one beside it."""
    wanted, pairs = 2 * rng.randint(*COUPLES), list(couples())
    cast: list[str] = []
    while len(cast) < wanted:
        (pair,) = rng.choices(pairs, [1 / (couples().index(pair) + 2) for pair in pairs])
        pairs.remove(pair)
        leader, partner = pair if rng.random() < 0.5 else pair[::-1]
        beside = partner if rng.random() < company else alike(partner, rng)
        if leader not in cast and partner not in cast and beside not in cast:
            cast += [leader, beside]
    return cast


def _place(rng: random.Random, cast: list[str], width: int, height: int, *, small: bool) -> list[Thing]:
    """Put couples one above the other, everything 4 px or more apart; they shrink until all of them fit."""
    objects: list[Thing] = []
    for attempt in itertools.count():
        objects = []
        for name in cast:
            colour, shape = name.split()
            side = rng.randint(*SMALL) if small else rng.choice(SIZES[shape] if attempt < 40 else SIZES[shape][:1])
            leader = objects[-1] if len(objects) % 2 else None
            box = _free(rng, side, width, height, objects, leader)
            if box is None:
                break
            objects.append(Thing(colour, shape, box))
        if len(objects) == len(cast):
            break
    return objects


def _free(
    rng: random.Random, side: int, width: int, height: int, objects: list[Thing], leader: Thing | None
) -> Box | None:
    """Find a place for a shape of `side` pixels: anywhere, or just above or below its leader and a little to the right.

    Corners lie near those of cells, as in all scenes: towers have seen shapes cut in no other way.
    """
    for _attempt in range(20):
        if leader is None:
            column, row = rng.randint(0, (width - side) // CELL), rng.randint(0, (height - side) // CELL)
        else:
            column = math.floor((leader.centre[0] - side / 2) / CELL) + 1
            above, below = leader.box[1] - GAP - side, leader.box[3] + GAP
            row = rng.choice((above // CELL, -(-below // CELL)))
        x, y = CELL * column + rng.randint(-2, 2), CELL * row + rng.randint(-2, 2)
        if leader is None:
            x, y = min(max(x, 0), width - side), min(max(y, 0), height - side)
        box = (x, y, x + side, y + side)
        inside = 0 <= x <= width - side and 0 <= y <= height - side
        if inside and all(apart(box, other.box, 4) for other in objects):
            return box
    return None


def _presence(rng: random.Random, objects: list[Thing]) -> list[Question]:
    """Ask about each leader's partner, there or not; then about as many classes that habit does not expect."""
    present = {class_of(thing): thing for thing in objects}
    expected = [partners()[class_of(leader)] for leader in objects[::2]]
    strange = [name for name in classes() if name not in present and partners()[name] not in present]
    asked = zip(expected, rng.sample(strange, len(expected)), strict=True)
    return [
        Question(is_there(name), "yes", "presence", present[name].box)
        if name in present
        else Question(is_there(name), "no", "presence")
        for pair in asked
        for name in pair
    ]
