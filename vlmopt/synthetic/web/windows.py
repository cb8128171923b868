"""Cut windows out of rendered pages, as worlds for the bundled checkpoints, with questions about labels."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable

import numpy as np

from ..base import Question, Thing, World, check_size, generator
from ..questions import ask, coordinates
from ..words import BACKGROUND, CELL, FIRST_SLOT, LABELS, LARGEST, LATTICE, SECOND_SLOT
from .render import Control, Edges, Screen

KINDS = ("click", "presence", "widget")  # questions that are true of a window; counts and lists would not be
OVER = 4  # questions drawn for one that is wanted, for many do not hold here
PRESENCE = 5  # questions of this sort at most, of which there are far more than others
FARTHEST = LARGEST - LATTICE // 2 - 1  # pixels from a window's edge to a centre that a coordinate word can name
NAMES = frozenset(label.casefold() for label in LABELS)
Frame = tuple[int, int, int, int]
SHARE = 0.3  # of a cell's height and width that a text must cover for the cell to carry it


def candidates(screen: Screen, size: tuple[int, int]) -> list[Control]:
    """Return the targets that bear a label and fit into a window of `size` (width, height)."""
    return [c for c in screen.targets if c.name in LABELS and all(map(len, _starts(screen, c, size)))]


def window(
    screen: Screen, target: Control, size: tuple[int, int] = (224, 224), *, seed: int = 0, questions: int = 12
) -> World:
    """Cut a window around a target, at a random place.

    Args:
        target: one of `candidates(screen, size)`.
        size: (width, height) in pixels, multiples of 14 up to 280.
        seed: of the place and the questions.
        questions: at most so many; the first one clicks the target.

    Returns:
        A world of family "screen". Its objects are the targets with a label that are inside as a whole; cells of other
        readable text and other controls leave the label unspecified, cells of what is cut leave both slots so.

    Raises:
        ValueError: a bad size, or a target that is none or does not fit.
    """
    width, height = check_size(size)
    if target not in candidates(screen, size):
        raise ValueError(
            f"{target.name!r} is not a labelled target of {screen.page} that fits into {width}x{height} pixels"
        )
    rng = generator(f"window/{screen.page}/{target.name}/{seed}", screen.seed, size)
    left, top = (rng.choice(starts) for starts in _starts(screen, target, size))
    frame = (left, top, left + width, top + height)
    inside = [c for c in screen.targets if c.name in LABELS and _within(c, frame)]
    things = [_thing(c, left, top) for c in inside]
    asked = _ask(screen, target.name, inside, things, frame, rng, questions)
    return World(screen.image.crop(frame), asked, things, _cells(screen, inside, frame), "screen", screen.theme)


def _whole(control: Control) -> Edges:
    """Return the edges of a control, with the name that it may have outside."""
    if control.text_box is None:
        return control.box
    pairs = list(zip(control.box, control.text_box, strict=True))
    return (min(pairs[0]), min(pairs[1]), max(pairs[2]), max(pairs[3]))


def _starts(screen: Screen, control: Control, size: tuple[int, int]) -> tuple[range, range]:
    """Return where a window may begin on either axis to show a control as a whole."""
    x0, y0, x1, y1 = _whole(control)
    wide, high = screen.image.size
    (x, y), (width, height) = control.centre, size
    return _range(x0, x1, x, width, wide, screen.cell), _range(y0, y1, y, height, high, screen.cell)


def _range(low: float, high: float, centre: float, side: int, whole: int, step: int) -> range:
    first = max(0, math.ceil(high) - side, math.ceil(centre) - FARTHEST)
    return range(-(-first // step) * step, min(whole - side, math.floor(low)) + 1, step)


def _within(control: Control, frame: Frame) -> bool:
    x0, y0, x1, y1 = _whole(control)
    far = max(control.centre[0] - frame[0], control.centre[1] - frame[1])
    return x0 >= frame[0] and y0 >= frame[1] and x1 <= frame[2] and y1 <= frame[3] and far <= FARTHEST


def _thing(control: Control, left: int, top: int) -> Thing:
    def moved(box: Edges) -> tuple[int, int, int, int]:
        return (round(box[0]) - left, round(box[1]) - top, round(box[2]) - left, round(box[3]) - top)

    return Thing(control.name, control.kind, moved(control.box), moved(control.text_box) if control.text_box else None)


def _ask(
    screen: Screen,
    target: str,
    inside: list[Control],
    things: list[Thing],
    frame: Frame,
    rng: random.Random,
    count: int,
) -> list[Question]:
    """Ask questions whose answers hold for all that can be seen in the window, also for what is no object of it."""
    own = {id(control) for control in inside}
    others = [c for c in screen.controls if id(c) not in own and _meet(c.box, frame)]
    kinds = {c.kind for c in others}
    lines = [t.text for t in (*screen.texts, *screen.icons) if any(_meet(box, frame) for box in t.boxes)]
    read = _words(" ".join([*lines, *(c.name for c in others)])) & NAMES
    seen = read - {thing.name.casefold() for thing in things}

    def holds(question: Question) -> bool:
        spoken = _words(question.text)
        if question.kind != "presence" or question.answer == "yes":
            return question.kind in KINDS
        return not spoken & seen and bool(spoken & NAMES or not spoken & kinds)

    size = (frame[2] - frame[0], frame[3] - frame[1])
    fair = [question for question in ask("screen", things, size, "", rng, OVER * count) if holds(question)]
    thing = next(thing for thing in things if thing.name == target)
    first = Question(f"Click {target}.", coordinates(thing), "click", thing.box)
    return [first, *_in_turn(question for question in fair if question.text != first.text)][:count]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _in_turn(questions: Iterable[Question]) -> list[Question]:
    """Drop presence questions until "yes" and "no" come in turn, and all beyond `PRESENCE`."""
    kept, answers = [], [""]
    for question in questions:
        if question.kind == "presence":
            if question.answer == answers[-1] or len(answers) > PRESENCE:
                continue
            answers.append(question.answer)
        kept.append(question)
    return kept


def covered(box: Edges, frame: Frame) -> np.ndarray:
    """Return [rows, columns]: the share of each cell's height and width that a box covers, the smaller one."""
    spans = []
    for low, high, start, end in ((box[1], box[3], frame[1], frame[3]), (box[0], box[2], frame[0], frame[2])):
        edges = np.arange(start, end - CELL + 1, CELL)
        spans.append(np.clip(np.minimum(high, edges + CELL) - np.maximum(low, edges), 0, None) / CELL)
    shares: np.ndarray = np.minimum(spans[0][:, None], spans[1][None])
    return shares


def _cells(screen: Screen, inside: list[Control], frame: Frame) -> np.ndarray:
    """Return int16 [2, rows, columns] as in `World.cells`."""
    left, top = frame[:2]
    columns, rows = (frame[2] - left) // CELL, (frame[3] - top) // CELL
    cells = np.full((2, rows, columns), -1, dtype=np.int16)
    cells[1] = SECOND_SLOT.index(BACKGROUND)

    for text in (*screen.texts, *screen.icons):
        for box in text.boxes:
            cells[0][covered(box, frame) > 0] = -2
    for control in sorted(screen.controls, key=lambda control: control.target):  # what is covered gives way
        share = covered(control.box, frame)
        cells[0][share > 0] = -2
        cells[1][share > 0] = -2
        if control.target:
            cells[1][share >= 0.5] = SECOND_SLOT.index(control.kind)
    for control in inside:
        share = covered(control.text_box or control.box, frame)
        named = (share >= SHARE) | (share == share.max())
        cells[0][named] = FIRST_SLOT.index(control.name)
    return cells


def _meet(a: Edges, b: Edges) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
