"""Short films of coloured shapes whose truth is known: what moved and where to, what came first, when, and how many."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .base import Question, Thing, check_size, generator
from .scenes import TINTS, apart, draw
from .words import COLOURS, SHAPES

SIDE = 42  # pixels of every shape
STEP = 7  # fewest pixels that a moving shape moves from frame to frame
CASTS = 20  # how often everybody is placed anew when the first two find no room
TOWARDS = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
KINDS = ("moved", "towards", "first", "when", "count", "still")


@dataclass(frozen=True)
class Actor:
    """A shape: from which frame on it is there, and which way it goes (None: nowhere), `step` pixels a frame."""

    thing: Thing  # where it stands in its first frame
    enters: int
    towards: str | None = None
    step: int = 0

    @property
    def words(self) -> str:
        return f"{self.thing.name} {self.thing.sort}"

    def at(self, frame: int) -> Thing | None:
        """Return where it is in a frame, None where it is not there yet."""
        if frame < self.enters:
            return None
        dx, dy = TOWARDS.get(self.towards or "", (0, 0))
        gone = self.step * (frame - self.enters)
        x0, y0, x1, y1 = self.thing.box
        box = (x0 + dx * gone, y0 + dy * gone, x1 + dx * gone, y1 + dy * gone)
        return Thing(self.thing.name, self.thing.sort, box)


@dataclass(frozen=True)
class Film:
    """Frames, who is in them, and questions that no single frame answers, but for `still`."""

    frames: list[Image.Image]
    actors: list[Actor]
    questions: list[Question]

    @property
    def size(self) -> tuple[int, int]:
        return self.frames[0].size


def film(seed: int, size: tuple[int, int] = (224, 224), *, frames: int = 8, actors: int = 4) -> Film:
    """Draw a film; nothing overlaps in any frame, and colours are told apart.

    Args:
        seed: any integer >= 0; equal arguments give equal films.
        size: (width, height) in pixels, multiples of 14.
        frames: 2 to 16.
        actors: how many shapes, 2 to 6; fewer if they find no room. One at least moves, one at least stays, and two at
            least enter apart.

    Raises:
        ValueError: a size, count or seed outside its range, or frames in which two shapes find no room.
    """
    width, height = check_size(size)
    if not 2 <= frames <= 16:
        raise ValueError(f"frames={frames} is outside 2..16")
    if not 2 <= actors <= 6:
        raise ValueError(f"actors={actors} is outside 2..6")
    rng = generator("film", seed, size)
    cast = choose_cast(rng, width, height, frames, actors)
    tint = rng.choice(TINTS)
    shown = []
    for number in range(frames):
        image = Image.new("RGB", (width, height), tint)
        pencil = ImageDraw.Draw(image)
        for actor in cast:
            if (thing := actor.at(number)) is not None:
                draw(pencil, thing, COLOURS[thing.name])
        shown.append(image)
    return Film(shown, cast, ask(rng, cast, frames))


def choose_cast(rng: random.Random, width: int, height: int, frames: int, wanted: int) -> list[Actor]:
    """Place at least two actors."""
    for _attempt in range(CASTS):
        cast = try_cast(rng, width, height, frames, wanted)
        if len(cast) >= 2:
            return cast
    raise ValueError(f"no room for two shapes in {frames} frames of {width}x{height} pixels: take larger or fewer ones")


def try_cast(rng: random.Random, width: int, height: int, frames: int, wanted: int) -> list[Actor]:
    """Place actors, the first of which moves from the start, and the second of which stands still and enters later."""
    colours = rng.sample(list(COLOURS), wanted)
    cast: list[Actor] = []
    for number, colour in enumerate(colours):
        for _attempt in range(200):
            enters = 0 if number == 0 else rng.randint(1, frames - 1) if number == 1 else rng.randint(0, frames - 1)
            moves = number == 0 or (number > 1 and rng.random() < 0.5 and enters < frames - 2)
            towards = rng.choice(list(TOWARDS)) if moves else None
            step = rng.randint(STEP, 2 * STEP) if moves else 0
            x, y = rng.randint(0, width - SIDE), rng.randint(0, height - SIDE)
            thing = Thing(colour, rng.choice(SHAPES), (x, y, x + SIDE, y + SIDE))
            actor = Actor(thing, enters, towards, step)
            if inside(actor, width, height, frames) and free(actor, cast, frames):
                cast.append(actor)
                break
        else:
            if number < 2:
                break
    return cast


def inside(actor: Actor, width: int, height: int, frames: int) -> bool:
    last = actor.at(frames - 1)
    return last is not None and last.box[0] >= 0 and last.box[1] >= 0 and last.box[2] <= width and last.box[3] <= height


def free(actor: Actor, cast: list[Actor], frames: int) -> bool:
    """Return whether an actor keeps clear of all others in every frame; places are kept from the beginning."""
    for other in cast:
        for number in range(frames):
            one = actor.at(max(number, actor.enters))
            two = other.at(max(number, other.enters))
            if one is not None and two is not None and not apart(one.box, two.box, 4):
                return False
    return True


def ask(rng: random.Random, cast: list[Actor], frames: int) -> list[Question]:
    """Ask a question of every kind that has one answer, in random order."""
    makers: dict[str, Callable[[], tuple[str, str] | None]] = {
        "moved": lambda: moved(cast),
        "towards": lambda: towards(rng, cast),
        "first": lambda: first(rng, cast),
        "when": lambda: when(rng, cast, frames),
        "count": lambda: ("How many shapes move?", str(sum(actor.towards is not None for actor in cast))),
        "still": lambda: still(rng, cast),
    }
    found = [(kind, make()) for kind, make in makers.items()]
    questions = [Question(*pair, kind) for kind, pair in found if pair is not None]
    rng.shuffle(questions)
    return questions


def moved(cast: list[Actor]) -> tuple[str, str] | None:
    movers = [actor for actor in cast if actor.towards is not None]
    return ("Which shape moves?", movers[0].words) if len(movers) == 1 else None


def towards(rng: random.Random, cast: list[Actor]) -> tuple[str, str]:
    actor, way = rng.choice([(actor, actor.towards) for actor in cast if actor.towards is not None])
    return f"Where does the {actor.words} move?", way


def first(rng: random.Random, cast: list[Actor]) -> tuple[str, str] | None:
    pairs = [(a, b) for a in cast for b in cast if a.enters < b.enters]
    one, two = rng.choice(pairs)
    named = [one, two] if rng.random() < 0.5 else [two, one]
    return f"Which is there first, the {named[0].words} or the {named[1].words}?", one.words


def when(rng: random.Random, cast: list[Actor], frames: int) -> tuple[str, str] | None:
    later = [actor for actor in cast if 0 < actor.enters < 9]
    actor = rng.choice(later) if later else None
    return None if actor is None else (f"In which frame does the {actor.words} appear?", str(actor.enters + 1))


def still(rng: random.Random, cast: list[Actor]) -> tuple[str, str]:
    actor = rng.choice([actor for actor in cast if actor.towards is None])
    return f"Which shape is {actor.thing.name}?", actor.thing.sort
