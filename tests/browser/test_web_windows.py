"""Windows cut out of rendered pages: whole targets, true answers, cells that say only what is sure. No browser."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vlmopt.synthetic.web.catalogue import PAGES
from vlmopt.synthetic.web.render import Control, Screen, Text
from vlmopt.synthetic.web.windows import candidates, window
from vlmopt.synthetic.words import BACKGROUND, CELL, COORDINATES, FIRST_SLOT, SECOND_SLOT


def control(name: str, box: tuple, kind: str = "button", **changes: object) -> Control:
    fields = {"text_box": None, "data_type": "icon", "target": True, **changes}
    return Control(name=name, kind=kind, box=box, **fields)


def screen(*controls: Control, lines: tuple[Text, ...] = (), size: tuple[int, int] = (1280, 800)) -> Screen:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    return Screen(PAGES[0], 3, "dark", 14, image, controls, lines, ())


SAVE = control("Save", (604.0, 300.0, 674.0, 330.0), text_box=(614.0, 305.0, 664.0, 325.0), data_type="text")
HELP = control("Help", (604.0, 340.0, 634.0, 370.0), kind="link")


@pytest.mark.parametrize("size", [(224, 224), (280, 196), (112, 280)])
def test_a_window_shows_its_target_as_a_whole_and_keeps_its_pixels(size: tuple[int, int]) -> None:
    whole = screen(SAVE, HELP)
    places = set()
    for seed in range(30):
        world = window(whole, SAVE, size, seed=seed)
        assert world.size == size
        assert (world.family, world.theme) == ("screen", "dark")
        (thing,) = (thing for thing in world.objects if thing.name == "Save")
        x0, y0, x1, y1 = thing.box
        assert (x1 - x0, y1 - y0) == (70, 30)
        assert 0 <= x0 < x1 <= size[0]
        assert 0 <= y0 < y1 <= size[1]
        left, top = 604 - x0, 300 - y0
        assert world.image.tobytes() == whole.image.crop((left, top, left + size[0], top + size[1])).tobytes()
        x, y = eval(world.questions[0].answer)
        assert world.questions[0].text == "Click Save."
        assert {x, y} <= set(COORDINATES)
        assert abs(x - (x0 + x1) / 2) <= 3.5
        assert abs(y - (y0 + y1) / 2) <= 3.5
        assert world.questions == window(whole, SAVE, size, seed=seed).questions
        places.add((left, top))
    assert len(places) > 20


@pytest.mark.parametrize(
    "box", [(0, 0, 30, 30), (1250, 770, 1280, 800), (1276, 400, 1280, 408), (2, 760, 250, 799), (0, 400, 280, 430)]
)
def test_windows_at_the_edges_of_the_page(box: tuple) -> None:
    """Whatever is a candidate can be cut out, and its answer is a coordinate word."""
    target = control("Save", tuple(map(float, box)))
    whole = screen(target)
    for size in ((224, 224), (280, 280)):
        for seed in range(8 if target in candidates(whole, size) else 0):
            x, y = eval(window(whole, target, size, seed=seed).questions[0].answer)
            assert {x, y} <= set(COORDINATES)
    assert (target in candidates(whole, (280, 280))) == (box[0] != 1276)  # there only 280 would be right


def test_cells_say_only_what_is_sure() -> None:
    """Names under their text, kinds where a control fills most of a cell, nothing where something else is read."""
    other = control("Export", (700.0, 300.0, 760.0, 330.0), target=False)
    prose = Text("It rains.", ((604.0, 400.0, 700.0, 416.0),))
    whole = screen(SAVE, HELP, other, lines=(prose,))
    for seed in range(20):
        world = window(whole, SAVE, (280, 280), seed=seed)
        (save,) = (thing for thing in world.objects if thing.name == "Save")
        left, top = 604 - save.box[0], 300 - save.box[1]
        for row in range(20):
            for column in range(20):
                x, y = left + CELL * column, top + CELL * row
                name, kind = world.cells[:, row, column]
                if x >= 614 and x + CELL <= 664 and y >= 301 and y <= 315:
                    assert FIRST_SLOT[name] == "Save"
                    assert SECOND_SLOT[kind] == "button"
                touched = [b for b in (SAVE.box, HELP.box, other.box, *prose.boxes) if meets(b, (x, y))]
                if not touched:
                    assert name == -1
                    assert SECOND_SLOT[kind] == BACKGROUND
                elif touched == [other.box]:
                    assert name == kind == -2
                elif touched == list(prose.boxes):
                    assert name == -2
                    assert SECOND_SLOT[kind] == BACKGROUND


def meets(box: tuple, corner: tuple[int, int]) -> bool:
    x, y = corner
    return box[0] < x + CELL and x < box[2] and box[1] < y + CELL and y < box[3]


def test_questions_hold_for_everything_that_can_be_seen() -> None:
    """Neither a word in a text, nor a control that is cut, lets "no" be the right answer."""
    tab = control("Print", (560.0, 310.0, 1000.0, 320.0), kind="tab", data_type="text", target=False)
    lines = (Text("Copy and paste are allowed", ((600.0, 305.0, 700.0, 315.0),)),)
    whole = screen(SAVE, tab, lines=lines)
    asked = [q for seed in range(120) for q in window(whole, SAVE, (112, 112), seed=seed).questions]
    presence = [q for q in asked if q.kind == "presence"]
    assert {q.kind for q in asked} == {"click", "presence", "widget"}
    assert {q.answer for q in presence} == {"yes", "no"}
    assert abs(sum(q.answer == "yes" for q in presence) / len(presence) - 0.5) < 0.1
    for question in presence:
        words = set(re.findall(r"\w+", question.text))
        if question.answer == "no":
            assert not words & {"Print", "Copy", "Paste"}
            assert question.text not in ("Is there a tab?", "Is there a button?", "Can you see Save?")
        else:
            assert "Save" in words or "button" in words


def test_targets_that_do_not_fit_are_refused() -> None:
    wide = control("Search", (100.0, 100.0, 700.0, 130.0), kind="field")
    whole = screen(SAVE, wide, replace(HELP, target=False))
    assert candidates(whole, (224, 224)) == [SAVE]
    for target in (wide, HELP):
        with pytest.raises(ValueError, match="not a labelled target"):
            window(whole, target, (224, 224))
    with pytest.raises(ValueError, match="multiple of 14"):
        window(whole, SAVE, (225, 224))
