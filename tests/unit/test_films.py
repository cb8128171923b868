"""Films: their answers are read off the pixels of all frames, by a way of its own."""

from __future__ import annotations

import numpy as np
import pytest

from vlmopt.synthetic.films import KINDS, SIDE, Film, film
from vlmopt.synthetic.words import COLOURS

SEEDS = range(40)


def seen(shown: Film, colour: str) -> list[tuple[float, float] | None]:
    """The centre of a colour in every frame, None where it is not there."""
    out: list[tuple[float, float] | None] = []
    for frame in shown.frames:
        rows, columns = np.nonzero((np.asarray(frame) == COLOURS[colour]).all(-1))
        out.append((float(columns.mean()), float(rows.mean())) if len(rows) else None)
    return out


def path(places: list[tuple[float, float] | None]) -> tuple[int, float, float]:
    """The first frame of a colour, and how far it goes to the right and down."""
    there = [(number, place) for number, place in enumerate(places) if place is not None]
    (start, first), (_, last) = there[0], there[-1]
    return start, last[0] - first[0], last[1] - first[1]


@pytest.mark.parametrize("count", [8, 16])
def test_answers_follow_from_pixels(count: int) -> None:
    kinds = set()
    for seed in SEEDS:
        shown = film(seed, frames=count)
        assert len(shown.frames) == count
        paths = {actor.thing.name: path(seen(shown, actor.thing.name)) for actor in shown.actors}
        shapes = {actor.thing.name: actor.thing.sort for actor in shown.actors}
        movers = [name for name, (_, dx, dy) in paths.items() if abs(dx) + abs(dy) > 3]
        for question in shown.questions:
            kinds.add(question.kind)
            colours = [word.strip("?,.") for word in question.text.split() if word.strip("?,.") in COLOURS]
            if question.kind == "moved":
                assert [question.answer] == [f"{name} {shapes[name]}" for name in movers]
            elif question.kind == "towards":
                _, dx, dy = paths[colours[0]]
                way = ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("bottom" if dy > 0 else "top")
                assert question.answer == way
            elif question.kind == "first":
                earliest = min(colours, key=lambda name: paths[name][0])
                assert question.answer == f"{earliest} {shapes[earliest]}"
            elif question.kind == "when":
                assert question.answer == str(paths[colours[0]][0] + 1)
            elif question.kind == "count":
                assert question.answer == str(len(movers))
            else:
                assert question.answer == shapes[colours[0]]
    assert kinds == set(KINDS)


def test_equal_arguments_give_equal_films_and_others_do_not() -> None:
    one, same, other = film(3), film(3), film(4)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one.frames, same.frames, strict=True))
    assert (one.questions, one.actors) == (same.questions, same.actors)
    assert one.actors != other.actors


def test_nothing_overlaps_and_nothing_leaves() -> None:
    for seed in SEEDS:
        shown = film(seed, (196, 280), frames=12, actors=5)
        for number in range(12):
            boxes = [thing.box for actor in shown.actors if (thing := actor.at(number)) is not None]
            for i, (x0, y0, x1, y1) in enumerate(boxes):
                assert 0 <= x0 < x1 <= 196
                assert 0 <= y0 < y1 <= 280
                assert (x1 - x0, y1 - y0) == (SIDE, SIDE)
                assert all(x1 <= a or c <= x0 or y1 <= b or d <= y0 for a, b, c, d in boxes[:i])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"frames": 1}, "2..16"),
        ({"frames": 17}, "2..16"),
        ({"actors": 7}, "2..6"),
        ({"size": (100, 224)}, "multiple"),
        ({"size": (112, 112), "frames": 16}, "no room"),
    ],
)
def test_refusals(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        film(0, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [110, 262, 398, 662])
def test_a_cast_that_finds_no_room_is_placed_anew(seed: int) -> None:
    shown = film(seed, (168, 168), frames=16)
    assert shown.actors[0].towards is not None
    assert shown.actors[1].towards is None


def test_no_single_frame_tells_what_comes_first() -> None:
    """Answers are spread: no kind is answered alike in most films."""
    answers: dict[str, list[str]] = {}
    for seed in range(120):
        for question in film(seed).questions:
            answers.setdefault(question.kind, []).append(question.answer)
    for kind, given in answers.items():
        assert max(given.count(answer) for answer in set(given)) / len(given) < 0.62, kind
