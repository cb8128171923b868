"""Marks of single answers, figures as sums of them, intervals and the paired test."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from vlmopt.evaluation.data import Sample
from vlmopt.evaluation.figures import figures
from vlmopt.evaluation.records import Record
from vlmopt.evaluation.scoring import Marking, Said, grade
from vlmopt.metrics import chair, is_yes, phrases, pope_scores, ratio_interval, wilson
from vlmopt.metrics.answers import anls, choice, exact, right_choice
from vlmopt.metrics.clicks import hits, in_pixels, point
from vlmopt.metrics.intervals import wilson_difference
from vlmopt.metrics.paired import compare, estimate


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("(10, 20)", (10, 20)),
        ("Click at [10,20,30,40].", (20, 30)),
        ("pyautogui.click(x=0.5, y=0.25)", (0.5, 0.25)),
        ("<|box_start|>(1,2),(3,4)<|box_end|>", (2, 3)),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "x"}]', (2, 3)),
        ('{"x": 5, "y": 6}', (5, 6)),
        ('<points x="1.5" y="2">ok</points>', (1.5, 2)),
        ("<point>12 30</point>", (12, 30)),
        ("12, 34.", (12, 34)),
        ("First (1, 2), then (30, 40)", (1, 2)),
        ("there are 3 dogs and 2 cats", None),
        ("(10 20 30)", None),
        ("", None),
    ],
)
def test_points_in_the_forms_that_models_use(answer: str, found: tuple[float, float] | None) -> None:
    assert point(answer) == (None if found is None else pytest.approx(found))


def test_points_in_pixels_and_boxes_with_their_edges() -> None:
    size, resized = (200, 100), (100, 50)
    assert in_pixels((50, 25), "resized", size, resized) == (100, 50)
    assert in_pixels((50, 25), "resized", size) == (50, 25)
    assert in_pixels((0.5, 0.5), "unit", size) == in_pixels((500, 500), "thousand", size) == (100, 50)
    with pytest.raises(ValueError, match="units 'percent' are unknown"):
        in_pixels((1, 1), "percent", size)
    assert hits((10, 20), (10, 10, 20, 20))
    assert hits((20, 10), (10, 10, 20, 20))
    assert not hits((20.5, 10), (10, 10, 20, 20))


def test_exact_match() -> None:
    assert exact(" Two  Dogs. ", ["a dog", "two dogs"])
    assert not exact("two dog", ["two dogs"])
    assert not exact("", ["two dogs"])


def test_anls() -> None:
    """Values by hand: one of five letters wrong is 0.8; one half counts, less does not; the nearest answer decides."""
    pytest.importorskip("rapidfuzz")
    assert anls("Helo", ["hello"]) == pytest.approx(0.8)
    assert anls("ab", ["abcd"]) == 0.5
    assert anls("a", ["abcd"]) == 0
    assert anls("  HELLO   world", ["nothing", "hello world"]) == 1
    assert anls("", ["x"]) == 0
    with pytest.raises(ValueError, match="at least one"):
        anls("a", [])


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("B", 1), ("(b)", 1), ("B. a dog", 1), ("c)", 2), ("The answer is C", 2), ("Answer: (D).", 3), ("a dog", 1),
        ("A man is here", 2), ("it is a dog", 1), ("a cat and a dog", None), ("E", None), ("", None), ("A", 0),
    ],
)  # fmt: skip
def test_choices(answer: str, found: int | None) -> None:
    assert choice(answer, ["a cat", "a dog", "a man", "nothing"]) == found


def test_the_right_choice_by_letter_or_words() -> None:
    assert right_choice(["b"], ["cat", "dog"]) == right_choice(["Dog"], ["cat", "dog"]) == 1
    assert right_choice(["B"], ["b", "a"]) == 0
    with pytest.raises(ValueError, match="neither"):
        right_choice(["C"], ["cat", "dog"])


def sample(kind: str, **facts: Any) -> Sample:
    return Sample(id="1", question="?", kind=kind, **facts)


def test_marks_by_kind() -> None:
    marking = Marking(lexicon=phrases(["dog", "cat", "person"], "toy"))
    yes = sample("yes_no", answer="yes")
    assert grade(yes, Said(text="Yes."), marking).correct is True
    assert grade(yes, Said(text=""), Marking(parser="reference")).metrics == {"yes": True, "unparsable": True}
    assert grade(yes, Said(text="NO"), Marking(parser="strict")).correct is False
    click = sample("click", box=(10, 10, 20, 20))
    hit = grade(click, Said(text="(12, 15)", size=(100, 100)), marking)
    assert (hit.correct, hit.extra) == (True, {"point": [12.0, 15.0]})
    assert grade(click, Said(text="there", size=(100, 100)), marking).metrics == {"unparsable": True}
    words = grade(sample("caption", objects=("dog", "person")), Said(text="A dog and a dog with a cat."), marking)
    assert words.correct is None
    counts = {name: words.metrics[name] for name in ("said", "false", "names", "found", "there", "words")}
    assert counts == {"said": 3, "false": 1, "names": 2, "found": 1, "there": 2, "words": 8}
    assert (words.metrics["unended"], words.metrics["cut_off"], words.metrics["repeated"]) == (False, False, False)
    assert grade(sample("open"), Said(text="x"), marking).correct is None


@pytest.mark.parametrize(
    ("kind", "facts", "correct"),
    [
        ("yes_no", {"answer": "no"}, False),
        ("click", {"box": (1, 1, 2, 2)}, False),
        ("choice", {"choices": ("a", "b"), "answer": "a"}, False),
        ("exact", {"answer": "a"}, False),
        ("anls", {"answer": "a"}, 0.0),
        ("caption", {"objects": ("dog",)}, None),
        ("open", {}, None),
    ],
)
def test_a_policy_that_fails_is_wrong_where_something_can_be_right(
    kind: str, facts: dict[str, Any], correct: bool | float | None
) -> None:
    assert grade(sample(kind, **facts), None, Marking()).correct == correct


def record(name: str, policy: str, sample: Sample, text: str, marking: Marking, image: str) -> Record:
    mark = grade(sample, Said(text=text), marking)
    return Record(
        id=name, index=0, policy=policy, question="?", answer=sample.answer and str(sample.answer), prediction=text,
        category="", kind=sample.kind, correct=mark.correct, metrics=mark.metrics, picture=image, extra=mark.extra,
    )  # fmt: skip


POPE = Marking(parser="reference")


def test_figures_of_yes_and_no_are_those_of_pope() -> None:
    """Against `pope_scores`, with the answers of a poor model."""
    rng = np.random.default_rng(0)
    labels = rng.random(60) < 0.5
    texts = [("yes", "No.", "", "not at all")[n] for n in rng.integers(0, 4, 60)]
    rows = [
        record(str(n), "dense", sample("yes_no", answer="yes" if label else "no"), text, POPE, str(n // 6))
        for n, (label, text) in enumerate(zip(labels, texts, strict=True))
    ]
    found, none = figures(rows, {row.id: row for row in rows})
    expected = asdict(pope_scores(labels.tolist(), [is_yes(text) for text in texts]))
    for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        assert found[name]["value"] == pytest.approx(expected[name])
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
    assert found["unparsable"]["value"] == np.mean([is_yes(text, "strict") is None for text in texts])
    assert (found["accuracy"]["n"], found["agreement"]["value"], none) == (60, 1, {})


def test_figures_of_captions_are_those_of_chair() -> None:
    names = ["dog", "cat", "person"]
    lexicon, texts = phrases(names, "toy"), ["A dog and a dog with a cat.", "", "A person. A person.", "Nothing here"]
    truths = [("dog", "person"), ("cat",), ("person",), ()]
    marking = Marking(lexicon=lexicon)
    rows = [
        record(str(n), "dense", sample("caption", objects=truth), text, marking, str(n))
        for n, (text, truth) in enumerate(zip(texts, truths, strict=True))
    ]
    found, _ = figures(rows, {})
    for name, value in chair(texts, truths, lexicon).figures.items():
        ours = {"length": "length", "unique_i": "chair_unique_i"}.get(name, f"chair_{name.removeprefix('chair_')}")
        assert found[ours]["value"] == pytest.approx(value)
    assert found["repeated"]["value"] == 0.25
    assert found["unended"]["value"] == 0.5
    assert found["distinct_4"]["n"] == 2


def test_differences_are_taken_over_what_both_answered() -> None:
    asked = sample("exact", answer="a")
    dense = {str(n): record(str(n), "dense", asked, "a" if n < 8 else "b", Marking(), str(n)) for n in range(9)}
    other = [record(str(n), "half", asked, "a" if n < 4 else "b", Marking(), str(n)) for n in range(1, 12)]
    found, versus = figures(other, dense)
    assert found["accuracy"]["n"] == 11
    assert versus["accuracy"]["n"] == 8
    assert versus["accuracy"]["difference"] == pytest.approx(3 / 8 - 7 / 8)
    assert found["agreement"]["value"] == pytest.approx(4 / 8)
    assert versus["accuracy"]["low"] < versus["accuracy"]["high"] <= 0


def test_all_right_has_an_interval_with_a_width() -> None:
    rows = [record(str(n), "dense", sample("exact", answer="a"), "a", Marking(), str(n)) for n in range(20)]
    accuracy = figures(rows, {})[0]["accuracy"]
    assert (accuracy["value"], accuracy["high"]) == (1, 1)
    assert accuracy["low"] == pytest.approx(0.839, abs=1e-3)


def rows_of(images: int, each: int, right: int, policy: str = "dense") -> list[Record]:
    """`each` questions about every image, the first `right` of them answered rightly."""
    return [
        record(f"{p}/{n}", policy, sample("exact", answer="a"), "a" if n < right else "b", Marking(), str(p))
        for p in range(images)
        for n in range(each)
    ]


@pytest.mark.parametrize("images", [1, 3, 9])
@pytest.mark.parametrize("right", [0, 13, 18])
def test_few_images_have_no_bootstrap_and_no_interval_without_a_width(images: int, right: int) -> None:
    """18 questions about each, all images alike: as sure as that many images, not as that many questions."""
    dense, half = rows_of(images, 18, 18), rows_of(images, 18, right, "half")
    found, versus = figures(half, {row.id: row for row in dense})
    for name in ("accuracy", "agreement"):
        one = found[name]
        assert (one["pictures"], one["interval"]) == (images, "Wilson over images")
        assert one["low"] <= one["value"] <= one["high"]
        assert one["high"] - one["low"] > 0.25
        assert (one["low"], one["high"]) == pytest.approx(wilson(right / 18 * images, images), abs=1e-9)
    change = versus["accuracy"]
    assert -1 <= change["low"] <= change["difference"] <= change["high"] <= 1
    assert change["high"] - change["low"] > 0.25


def test_many_images_that_are_all_alike_have_a_width_too() -> None:
    found, versus = figures(rows_of(40, 4, 3, "half"), {row.id: row for row in rows_of(40, 4, 3)})
    assert found["accuracy"]["interval"] == "Wilson over images"
    assert found["accuracy"]["low"] < 0.75 < found["accuracy"]["high"]
    assert (versus["accuracy"]["low"], versus["accuracy"]["high"]) == pytest.approx((-0.0876, 0.0876), abs=1e-3)
    mixed = [row for n in range(20) for row in rows_of(1, 4, n % 5)]
    mixed = [replace(row, id=str(n), picture=str(n // 4)) for n, row in enumerate(mixed)]
    assert figures(mixed, {})[0]["accuracy"]["interval"] == "bootstrap over images"


def test_dense_agrees_with_itself_by_definition() -> None:
    dense = rows_of(3, 2, 1)
    found, _ = figures(dense, {row.id: row for row in dense})
    assert found["agreement"] == {
        "value": 1, "low": 1, "high": 1, "n": 6, "pictures": 3, "interval": "by definition",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "dense", "pruned", "same"),
    [
        (sample("exact", answer="a"), "two dogs", "**Two dogs.**", True),
        (sample("exact", answer="a"), "two dogs", "three dogs", False),
        (sample("choice", answer="cat", choices=("cat", "dog")), "B", "The answer is (B) dog.", True),
        (sample("choice", answer="cat", choices=("cat", "dog")), "B", "A", False),
        (sample("yes_no", answer="no"), "No", "There is no dog.", True),
        (sample("yes_no", answer="no"), "No", "<think>no</think>Yes", False),
        (sample("yes_no", answer="no"), "Perhaps.", "Who knows?", False),
        (sample("caption"), "A dog barks.", "<think>What is it?</think>A dog barks.", True),
    ],
)
def test_another_style_is_no_other_answer(asked: Sample, dense: str, pruned: str, same: bool) -> None:
    before = record("1", "dense", asked, dense, Marking(), "1")
    after = record("1", "half", asked, pruned, Marking(), "1")
    assert figures([after], {"1": before})[0]["agreement"]["value"] == same


def test_lengths_of_few_captions_have_a_width() -> None:
    caption = sample("caption")
    same = [record(str(n), "dense", caption, "a dog barks here", Marking(), str(n)) for n in range(4)]
    length = figures(same, {})[0]["length"]
    assert length["interval"] == "Student's t over images"
    assert length["low"] < length["value"] == 4 < length["high"]
    longer = [record(str(n), "half", caption, "a dog barks here now", Marking(), str(n)) for n in range(4)]
    change = figures(longer, {row.id: row for row in same})[1]["length"]
    assert change["low"] < change["difference"] == 1 < change["high"]


def test_small_intervals_cover() -> None:
    """95 % intervals over few images hold the truth in 93 % of all draws, and in 87 % in the worst case."""
    rng, held = np.random.default_rng(0), []
    for images in (3, 6, 9):
        for draw in (lambda n: (rng.random(n) < 0.7).astype(float), lambda n: rng.beta(2.8, 1.2, n)):
            ends = np.array([wilson(draw(images).mean() * images, images) for _ in range(2000)])
            held.append(((ends[:, 0] <= 0.7) & (ends[:, 1] >= 0.7)).mean())
        for better, worse in ((0.0, 0.3), (0.1, 0.3), (0.3, 0.3), (0.05, 0.05), (0.5, 0.5)):
            changed = rng.multinomial(images, (better, worse, 1 - better - worse), 2000) / images
            ends = np.array([wilson_difference(gain, loss, images) for gain, loss, _ in changed])
            held.append(((ends[:, 0] <= better - worse) & (ends[:, 1] >= better - worse)).mean())
    assert np.mean(held) >= 0.93
    assert min(held) >= 0.87


def test_intervals_are_those_of_the_other_module() -> None:
    rng = np.random.default_rng(1)
    table = np.stack([rng.integers(0, 5, (40, 2)), rng.integers(5, 9, (40, 2))], axis=2).astype(float)
    for metric, found in enumerate(estimate(table, seed=3)):
        assert found == pytest.approx(ratio_interval(table[:, metric, 0], table[:, metric, 1], seed=3))


def test_the_permutation_test_against_all_permutations() -> None:
    """Eight images have 256 ways to exchange two methods; the p of the draw is that of the full count."""
    first, second = np.array([1, 1, 1, 1, 1, 1, 0, 1.0]), np.array([1, 0, 0, 0, 0, 1, 0, 0.0])
    one = np.ones(8)
    gaps = []
    for swap in itertools.product((False, True), repeat=8):
        a, b = np.where(swap, second, first), np.where(swap, first, second)
        gaps.append(abs(b.mean() - a.mean()))
    truth = np.mean(np.array(gaps) >= abs(second.mean() - first.mean()) - 1e-12)
    (found,) = compare(np.stack([first, one, second, one], axis=1)[:, None], seed=0)
    assert found.difference.value == pytest.approx(-5 / 8)
    assert found.p == pytest.approx(truth, abs=0.01)
    assert truth == pytest.approx(2 / 32)


def test_methods_that_never_differ_have_p_one() -> None:
    marks = np.array([1, 0, 1, 1.0])
    (found,) = compare(np.stack([marks, np.ones(4), marks, np.ones(4)], axis=1)[:, None])
    assert (found.difference.value, found.p) == (0, 1)
    with pytest.raises(ValueError, match="expected"):
        compare(np.ones((4, 4)))


def test_the_test_takes_questions_about_one_image_together() -> None:
    """Sixty questions that all hang on six images are no more evidence than six."""
    many = np.stack([np.ones(60), np.ones(60), np.zeros(60), np.ones(60)], axis=1)[:, None]
    few = many.reshape(6, 10, 1, 4).sum(1)
    assert compare(many)[0].p < 1e-3
    assert compare(few)[0].p == pytest.approx(2 / 64, abs=0.01)
