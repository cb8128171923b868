"""Questions about an image, drawn so that no answer can be guessed from the question alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from .base import Question, Thing
from .words import COLOURS, KINDS, LABELS, LATTICE, MAX_COUNT, SHAPES

T = TypeVar("T", bound=Hashable)  # a property of a thing
Asked = tuple[str, str, Thing | None] | None  # question, answer, the one thing asked about

SINGLE = 0.3  # fraction of presence questions that name one property only
HARD = 0.7  # fraction of "no" pairs whose two words both occur in the image, on different things

SCENE_KINDS = {"presence": 6, "colour": 3, "shape": 2, "count": 3, "where": 2, "point": 3, "describe": 1}
SCREEN_KINDS = {"click": 6, "presence": 4, "widget": 2, "count": 1, "list": 1, "title": 1, "label": 1}


def ask(
    family: str,
    objects: list[Thing],
    size: tuple[int, int],
    title: str,
    rng: random.Random,
    count: int,
) -> list[Question]:
    """Draw `count` questions, their kinds by weight; no question is asked twice.

    Presence questions are answered "yes" and "no" in turn, so that neither is the better guess.
    """
    weights = SCENE_KINDS if family == "scene" else SCREEN_KINDS
    asker = _Asker(objects, size, title, rng, *((COLOURS, SHAPES) if family == "scene" else (LABELS, KINDS)))
    questions: list[Question] = []
    answer, asked = rng.choice(("yes", "no")), set()
    for kind in rng.choices(list(weights), list(weights.values()), k=4 * count):
        question = asker.ask(kind, answer)
        if question is None or question.text in asked or len(questions) == count:
            continue
        questions.append(question)
        asked.add(question.text)
        if kind == "presence":
            answer = "no" if answer == "yes" else "yes"
    return questions


def article(word: str) -> str:
    return "an" if word[0] in "aeiouAEIOU" else "a"


class _Asker:
    def __init__(
        self,
        objects: list[Thing],
        size: tuple[int, int],
        title: str,
        rng: random.Random,
        names: Iterable[str],
        sorts: Iterable[str],
    ) -> None:
        self.objects, self.size, self.title, self.rng = objects, size, title, rng
        self.names, self.sorts = tuple(names), tuple(sorts)
        self.scene = self.names == tuple(COLOURS)
        self.pairs = Counter((thing.name, thing.sort) for thing in objects)
        self.by_name = Counter(thing.name for thing in objects)
        self.by_sort = Counter(thing.sort for thing in objects)

    def ask(self, kind: str, answer: str) -> Question | None:
        """Draw a question of a kind, or None if this image has none; a presence question gets the wanted `answer`."""
        method: Callable[[], Asked] = getattr(self, "_" + kind)
        asked = self._presence(answer) if kind == "presence" else method()
        if asked is None:
            return None
        text, answer, thing = asked
        return Question(text, answer, kind, thing.box if thing is not None else None)

    def _any(self) -> Thing | None:
        return self.rng.choice(self.objects) if self.objects else None

    def _only(self, counts: Counter[T], key: Callable[[Thing], T]) -> Thing | None:
        """Return a thing that is alone in its property, if there is one."""
        candidates = [thing for thing in self.objects if counts[key(thing)] == 1]
        return self.rng.choice(candidates) if candidates else None

    def _unique(self) -> Thing | None:
        return self._only(self.pairs, lambda thing: (thing.name, thing.sort))

    def _presence(self, answer: str) -> Asked:
        yes = answer == "yes"
        thing = self._any()
        if thing is None:
            return None
        if self.rng.random() < SINGLE:
            by_name = self.rng.random() < 0.5
            present, words = (self.by_name, self.names) if by_name else (self.by_sort, self.sorts)
            absent = [word for word in words if word not in present]
            if not yes and not absent:
                return None
            word = (thing.name if by_name else thing.sort) if yes else self.rng.choice(absent)
            if by_name:
                return (f"Is anything {word}?" if self.scene else f"Can you see {word}?"), answer, None
            return f"Is there {article(word)} {word}?", answer, None
        name, sort = thing.name, thing.sort
        if not yes:
            pair = self._missing_pair()
            if pair is None:
                return None
            name, sort = pair
        found = [thing for thing in self.objects if (thing.name, thing.sort) == (name, sort)]
        return f"Is there {article(name)} {name} {sort}?", answer, found[0] if len(found) == 1 else None

    def _missing_pair(self) -> tuple[str, str] | None:
        hard = [(n, s) for n in self.by_name for s in self.by_sort if (n, s) not in self.pairs]
        if hard and self.rng.random() < HARD:
            return self.rng.choice(hard)
        for _attempt in range(20):
            pair = self.rng.choice(self.names), self.rng.choice(self.sorts)
            if pair not in self.pairs:
                return pair
        return None

    def _colour(self) -> Asked:
        thing = self._only(self.by_sort, lambda thing: thing.sort)
        return (f"What colour is the {thing.sort}?", thing.name, thing) if thing else None

    def _shape(self) -> Asked:
        thing = self._only(self.by_name, lambda thing: thing.name)
        return (f"What shape is {thing.name}?", thing.sort, thing) if thing else None

    def _count(self) -> Asked:
        draw = self.rng.random()
        if draw < 0.2:
            return f"How many {'shapes' if self.scene else 'widgets'} are there?", str(len(self.objects)), None
        if draw < 0.5 and self.scene:
            colour = self.rng.choice(self.names if draw < 0.25 else list(self.by_name) or self.names)
            return f"How many shapes are {colour}?", str(min(self.by_name[colour], MAX_COUNT)), None
        sort = self.rng.choice(self.sorts if draw < 0.6 else list(self.by_sort) or self.sorts)
        plural = sort + ("es" if sort.endswith("x") else "s")
        return f"How many {plural} are there?", str(min(self.by_sort[sort], MAX_COUNT)), None

    def _where(self) -> Asked:
        thing = self._unique()
        if thing is None:
            return None
        (x, y), (width, height) = thing.centre, self.size
        if abs(x - width / 2) < 14 or abs(y - height / 2) < 14:
            return None  # too near a midline for one right answer
        side = f"{'top' if y < height / 2 else 'bottom'} {'left' if x < width / 2 else 'right'}"
        return f"Where is the {thing.name} {thing.sort}?", side, thing

    def _point(self) -> Asked:
        thing = self._unique()
        return (f"Point at the {thing.name} {thing.sort}.", coordinates(thing), thing) if thing else None

    def _click(self) -> Asked:
        thing = self._any()
        if thing is None:
            return None
        full = self.rng.random() < 0.3
        return f"Click the {thing.name} {thing.sort}." if full else f"Click {thing.name}.", coordinates(thing), thing

    def _widget(self) -> Asked:
        thing = self._any()
        return (f"What is {thing.name}?", thing.sort, thing) if thing else None

    def _label(self) -> Asked:
        thing = self._only(self.by_sort, lambda thing: thing.sort)
        return (f"What does the {thing.sort} say?", thing.name, thing) if thing else None

    def _title(self) -> Asked:
        return "What is the title?", self.title, None

    def _describe(self) -> Asked:
        ordered = sorted(self.objects, key=lambda thing: (thing.centre[0], thing.centre[1]))
        described = ", ".join(f"{article(thing.name)} {thing.name} {thing.sort}" for thing in ordered)
        return ("Describe the picture.", described, None) if ordered else None

    def _list(self) -> Asked:
        ordered = sorted(self.objects, key=lambda thing: (thing.centre[1], thing.centre[0]))
        return ("List the labels.", ", ".join(thing.name for thing in ordered), None) if ordered else None


def coordinates(thing: Thing) -> str:
    x, y = (LATTICE * max(1, round(value / LATTICE)) for value in thing.centre)
    return f"({x}, {y})"
