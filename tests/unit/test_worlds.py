"""Generated images: deterministic, well-formed, and fair."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest

from vlmopt.cli.main import main
from vlmopt.synthetic import scene, screen
from vlmopt.synthetic.words import BACKGROUND, CELL, COLOURS, FIRST_SLOT, KINDS, LABELS, SECOND_SLOT, SHAPES

FAMILIES = pytest.mark.parametrize("draw", [scene, screen])


@FAMILIES
def test_same_seed_same_image_whatever_the_global_state(draw):
    random.seed(1)
    np.random.seed(1)
    first = draw(7)
    random.seed(2)
    np.random.seed(2)
    second = draw(7)
    assert first.image.tobytes() == second.image.tobytes()
    assert first.questions == second.questions
    assert first.objects == second.objects
    assert draw(8).image.tobytes() != first.image.tobytes()


@FAMILIES
@pytest.mark.parametrize("size", [(224, 224), (280, 196), (196, 280)])
def test_images_are_well_formed(draw, size):
    for seed in range(40):
        world = draw(seed, size)
        assert world.image.size == size
        assert world.image.mode == "RGB"
        assert world.objects
        assert world.cells.shape == (2, size[1] // CELL, size[0] // CELL)
        texts = [question.text for question in world.questions]
        assert len(texts) == len(set(texts))
        for thing in world.objects:
            x0, y0, x1, y1 = thing.box
            assert 0 <= x0 < x1 <= size[0]
            assert 0 <= y0 < y1 <= size[1]


def test_objects_do_not_overlap_and_cells_name_them():
    for seed in range(40):
        for world in (scene(seed), screen(seed)):
            for i, a in enumerate(world.objects):
                for b in world.objects[:i]:
                    apart = (a.box[2] <= b.box[0], b.box[2] <= a.box[0], a.box[3] <= b.box[1], b.box[3] <= a.box[1])
                    assert any(apart)
                left, top, right, bottom = (
                    a.box[0] // CELL,
                    a.box[1] // CELL,
                    -(-a.box[2] // CELL),
                    -(-a.box[3] // CELL),
                )
                inside = world.cells[:, top:bottom, left:right]
                assert FIRST_SLOT.index(a.name) in inside[0]
                assert SECOND_SLOT.index(a.sort) in inside[1]
            assert SECOND_SLOT.index(BACKGROUND) in world.cells[1]


def test_widgets_keep_to_the_grid_and_are_large_enough():
    for seed in range(60):
        for thing in screen(seed).objects:
            assert all(side % CELL == 0 for side in thing.box)
            assert thing.box[2] - thing.box[0] >= 4 * CELL
            assert thing.box[3] - thing.box[1] >= 2 * CELL
            assert thing.text_box[0] >= thing.box[0]
            assert thing.text_box[2] <= thing.box[2]


def test_answers_are_true():
    """Recompute the answers that follow from the object list alone."""
    for seed in range(80):
        for world in (scene(seed, questions=30), screen(seed, questions=30)):
            pairs = {(thing.name, thing.sort) for thing in world.objects}
            words = {word for pair in pairs for word in pair}
            for question in world.questions:
                named = [word for word in question.text.strip("?.").split() if word in (*FIRST_SLOT, *SECOND_SLOT)]
                if question.kind == "presence":
                    there = tuple(named) in pairs if len(named) == 2 else named[0] in words
                    assert question.answer == ("yes" if there else "no"), (seed, question)
                if question.kind in ("click", "point"):
                    x, y = map(int, question.answer.strip("()").split(", "))
                    x0, y0, x1, y1 = question.box
                    assert x0 <= x < x1
                    assert y0 <= y < y1
                if question.kind == "count" and named and named[0] in COLOURS:
                    assert int(question.answer) == sum(thing.name == named[0] for thing in world.objects)


@FAMILIES
def test_presence_is_balanced_and_has_hard_negatives(draw):
    answers, hard = Counter(), 0
    for seed in range(300):
        world = draw(seed)
        names, sorts = ({getattr(thing, slot) for thing in world.objects} for slot in ("name", "sort"))
        for question in world.questions:
            if question.kind != "presence":
                continue
            answers[question.answer] += 1
            words = question.text.strip("?").split()[-2:]
            hard += question.answer == "no" and words[0] in names and words[1] in sorts
    assert 0.45 < answers["yes"] / answers.total() < 0.55
    assert hard > 0.2 * answers["no"]


def test_vocabulary_is_wide_enough():
    assert len(LABELS) >= 20
    assert len(set(LABELS)) == len(LABELS)
    assert len(KINDS) >= 5
    assert len(SHAPES) >= 4
    assert len(COLOURS) >= 6


@pytest.mark.parametrize("size", [(225, 224), (224, 14), (2800, 224)])
def test_bad_sizes_are_refused(size):
    with pytest.raises(ValueError, match="multiple of 14"):
        scene(0, size)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "0"])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="seed"):
        screen(seed)


def test_command_writes_images_and_manifest(tmp_path):
    main(["worlds", "--out", str(tmp_path), "--count", "4", "--seed", "3", "--questions", "5"])
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert {"id", "image", "question", "answer", "kind", "box"} == set(rows[0])
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["image"] for row in rows} == {path.name for path in tmp_path.glob("*.png")}
    assert len(list(tmp_path.glob("*.png"))) == 4
