"""Metrics: the golden cases of POPE and CHAIR, the state of text, and intervals that cover what they should."""

from __future__ import annotations

import numpy as np
import pytest

from vlmopt.metrics import (
    Lexicon,
    chair,
    coco_lexicon,
    is_yes,
    load_synonyms,
    mcnemar,
    mean_interval,
    mean_of_splits,
    paired_difference,
    phrases,
    pope_fractions,
    pope_scores,
    ratio_interval,
    text_state,
    wilson,
)
from vlmopt.metrics.coco import SYNONYMS
from vlmopt.metrics.lexicon import singular

TOY = phrases(("dog", "person", "cat"), "toy")


@pytest.mark.parametrize(
    ("answer", "reference", "contractions", "strict"),
    [
        ("Yes, there is no dog", False, False, True),
        ("Yes. No cat.", True, True, True),
        ("There isn't", True, False, None),
        ("No, there is a cat", False, False, False),
        ("", True, True, None),
        ("NO", True, True, False),
        ("nothing", True, True, None),
        ("Not that I can see", True, True, None),
        ("it is not", False, False, None),
        ("no.", False, False, False),
        (" yes", True, True, True),
    ],
)
def test_parsers_read_answers_as_stated(answer, reference, contractions, strict):
    assert is_yes(answer) is reference
    assert is_yes(answer, "contractions") is contractions
    assert is_yes(answer, "strict") is strict


def test_unknown_parser_is_refused():
    with pytest.raises(ValueError, match=r"lenient.*reference"):
        is_yes("yes", "lenient")


def test_pope_figures_follow_from_the_four_counts():
    labels = [True] * 6 + [False] * 4
    said = [True] * 5 + [False] + [True] * 2 + [False] * 2  # TP 5, FN 1, FP 2, TN 2
    scores = pope_scores(labels, said)
    assert scores.accuracy == pytest.approx(0.7)
    assert scores.precision == pytest.approx(5 / 7)
    assert scores.recall == pytest.approx(5 / 6)
    assert scores.f1 == pytest.approx(2 * (5 / 7) * (5 / 6) / (5 / 7 + 5 / 6))
    assert scores.yes_ratio == pytest.approx(0.7)
    assert scores.unparsable == 0


def test_an_answer_that_says_neither_is_wrong_and_reported():
    scores = pope_scores([True, False, False], [None, None, False])
    assert scores.accuracy == pytest.approx(1 / 3)
    assert scores.unparsable == pytest.approx(2 / 3)
    assert scores.yes_ratio == 0


def test_pope_without_denominators_is_zero_and_without_answers_refused():
    scores = pope_scores([True, False], [False, False])
    assert (scores.precision, scores.recall, scores.f1) == (0, 0, 0)
    with pytest.raises(ValueError, match="2 labels and 1 answers"):
        pope_scores([True, False], [True])
    with pytest.raises(ValueError, match="at least one"):
        pope_scores([], [])


def test_mean_of_splits_averages_every_figure():
    splits = {
        "random": pope_scores([True, False], [True, False]),
        "adversarial": pope_scores([True, False], [True, True]),
    }
    mean = mean_of_splits(splits)
    assert mean.accuracy == pytest.approx(0.75)
    assert mean.f1 == pytest.approx((1 + 2 / 3) / 2)
    assert mean.yes_ratio == pytest.approx(0.75)


def test_fractions_of_images_add_up_to_the_figures():
    rng = np.random.default_rng(0)
    labels = (rng.random(120) < 0.5).tolist()
    said = [None if x < 0.1 else bool(x < 0.6) for x in rng.random(120)]
    scores = pope_scores(labels, said)
    for name, (top, bottom) in pope_fractions(labels, said, np.repeat(np.arange(20), 6).tolist()).items():
        assert len(top) == len(bottom) == 20
        assert top.sum() / bottom.sum() == pytest.approx(getattr(scores, name))


def test_chair_on_the_golden_caption():
    marks = chair(["A dog and a dog with a cat."], [{"dog", "person"}], TOY)
    assert TOY.mentions("A dog and a dog with a cat.") == ["dog", "dog", "cat"]
    assert marks.figures == pytest.approx(
        {"chair_s": 1, "chair_i": 1 / 3, "unique_i": 0.5, "recall": 0.5, "precision": 0.5, "f1": 0.5, "length": 8}
    )


def test_chair_sums_over_captions_before_it_divides():
    marks = chair(["a dog", "a cat, a cat, a cat", "nothing"], [{"dog"}, {"person"}, {"dog", "cat"}], TOY)
    assert marks.figures["chair_i"] == pytest.approx(3 / 4)
    assert marks.figures["chair_s"] == pytest.approx(1 / 3)
    assert marks.figures["recall"] == pytest.approx(1 / 4)
    assert marks.figures["unique_i"] == pytest.approx(1 / 2)


def test_chair_of_captions_without_objects_is_zero():
    assert chair(["something"], [{"dog"}], TOY).figures["chair_i"] == 0


def test_chair_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="1 captions and 2 truths"):
        chair(["a dog"], [{"dog"}, {"cat"}], TOY)
    with pytest.raises(ValueError, match="unicorn"):
        chair(["a dog"], [{"unicorn"}], TOY)


@pytest.mark.parametrize(
    ("caption", "names"),
    [
        ("A baby elephant", ["elephant"]),
        ("hot dog", ["hot dog"]),
        ("two hot dogs and a dog", ["hot dog", "dog"]),
        ("a man wearing a bow tie", ["person", "tie"]),
        ("toilet seat", ["toilet"]),
        ("a toilet with its seat up", ["toilet"]),
        ("a seat", ["chair"]),
        ("passenger train", ["train"]),
        ("an adult zebra", ["zebra"]),
        ("wine glasses on tables", ["wine glass", "dining table"]),
        ("Men, women and children on motor bikes", ["person", "person", "person", "motorcycle"]),
        ("a train track by the home plate", []),
        ("skis, scissors, buses and two knives", ["skis", "scissors", "bus", "knife"]),
        ("a laptop computer, a mobile phone", ["laptop", "cell phone"]),
        ("teddy bears", ["teddy bear"]),
        ("a sports ball", ["sports ball"]),
    ],
)
def test_captions_name_objects_of_coco(caption, names):
    assert coco_lexicon().mentions(caption) == names


def test_our_table_has_coco_s_eighty_names_each_word_once():
    rows = [line.split(", ") for line in SYNONYMS.strip().splitlines()]
    words = [word for row in rows for word in row]
    assert len(rows) == 80
    assert len(set(words)) == len(words)
    for row in rows:
        assert coco_lexicon().mentions(row[0]) == [row[0]]


@pytest.mark.parametrize(
    ("word", "expected"),
    [("dogs", "dog"), ("boxes", "box"), ("benches", "bench"), ("puppies", "puppy"), ("ties", "tie"),
     ("glasses", "glass"), ("people", "person"), ("sheep", "sheep"), ("bus", "bus"), ("tennis", "tennis")],
)  # fmt: skip
def test_singulars(word, expected):
    assert singular(word) == expected


def test_a_table_of_one_s_own_says_that_it_is_not_the_reference(tmp_path):
    path = tmp_path / "synonyms.txt"
    path.write_text("couch, sofa\nmotorcycle,  scooter\n")
    lexicon = load_synonyms(path)
    assert lexicon.mentions("a sofa and a scooter") == ["couch"]  # the second entry starts with a space: never found
    assert "not the reference table" in lexicon.source
    path.write_text("\n")
    with pytest.raises(ValueError, match="no names"):
        load_synonyms(path)


def test_the_reference_table_is_known_by_its_hash(tmp_path, monkeypatch):
    path = tmp_path / "synonyms.txt"
    path.write_text("dog, puppy\n")
    import hashlib

    from vlmopt.metrics import synonyms

    monkeypatch.setattr(synonyms, "REFERENCE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    assert load_synonyms(path).source == "reference table"


def test_phrases_win_over_their_words_and_have_two_at_most():
    toy = Lexicon({"red circle": "red circle", "circle": "circle"}, {("red", "circle"): "red circle"}, "toy")
    assert toy.mentions("a red circle, a circle") == ["red circle", "circle"]
    with pytest.raises(ValueError, match="big red circle"):
        phrases(["big red circle"], "toy")


def test_text_state_tells_loops_from_sentences():
    sound, loop = "A dog sits here. A cat looks on.", "A dog sits. A dog sits. A dog"
    good, bad = text_state([sound]), text_state([loop])
    assert good.repeated == good.unended == 0
    assert bad.repeated == bad.unended == 1
    assert good.distinct_1 == pytest.approx(7 / 8)
    assert bad.distinct_1 == pytest.approx(3 / 8)
    assert bad.distinct_4 == pytest.approx(3 / 5)
    assert good.distinct_4 == 1
    assert text_state([sound, loop]).repeated == 0.5
    assert good.length == 8


def test_text_state_of_lists_and_of_known_ends():
    state = text_state(["a red circle, a blue star, a red circle", "a red circle"], stops=",", ended=[True, False])
    assert state.repeated == 0.5
    assert state.unended == 0.5
    assert text_state(['He said "yes."']).unended == 0
    with pytest.raises(ValueError, match="captions"):
        text_state([])
    with pytest.raises(ValueError, match="ended"):
        text_state(["a"], ended=[True, False])


def test_wilson_covers_the_fraction_and_refuses_nonsense():
    low, high = wilson(46, 100)
    assert (low, high) == pytest.approx((0.3656, 0.5574), abs=1e-3)
    assert wilson(0, 10)[0] == 0
    with pytest.raises(ValueError, match="11 of 10"):
        wilson(11, 10)


def test_bootstrap_agrees_with_the_binomial_error():
    """Near 46 % of 500 the standard error is 2.2 points."""
    marks = np.arange(500) < 230
    value, low, high = mean_interval(marks)
    assert value == pytest.approx(0.46)
    assert high - low == pytest.approx(2 * 1.96 * 0.0223, rel=0.06)


def test_intervals_resample_images_not_questions():
    """Six equal answers per image say no more than one."""
    marks = (np.arange(100) < 46).astype(float)
    clustered, single = ratio_interval(6 * marks, np.full(100, 6.0)), mean_interval(marks)
    assert clustered == pytest.approx(single)


def test_paired_difference_is_narrower_than_two_intervals_and_signed():
    rng = np.random.default_rng(1)
    one = np.ones(400)
    before = (rng.random(400) < 0.5).astype(float)
    after = before.copy()
    after[:20] = 1 - after[:20]
    value, low, high = paired_difference((before, one), (after, one))
    assert value == pytest.approx(after.mean() - before.mean())
    assert high - low < 0.5 * (mean_interval(before).high - mean_interval(before).low)
    assert paired_difference((before, one), (before, one)) == (0, 0, 0)
    better = paired_difference((before, one), (one, one))
    assert better.low > 0
    with pytest.raises(ValueError, match="one entry per image"):
        paired_difference((before, one), (after[:5], one[:5]))


def test_mcnemar_counts_the_items_on_which_methods_differ():
    first, second = [True] * 10 + [False] * 2, [False] * 10 + [True] * 2
    assert mcnemar(first, second)[:2] == (10, 2)
    assert mcnemar(first, second).p == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert mcnemar(first, first).p == 1
    with pytest.raises(ValueError, match="same items"):
        mcnemar([True], [])


@pytest.mark.parametrize(
    ("caption", "names"),
    [
        ("Three taxis, two canoes and TVs", ["car", "boat", "tv"]),
        ("minibuses, trolleybuses, neckties", ["bus", "bus", "tie"]),
        ("A man's dog and the girl’s bike", ["person", "dog", "person", "bicycle"]),
    ],
)
def test_plurals_and_owners_are_named(caption: str, names: list[str]) -> None:
    assert coco_lexicon().mentions(caption) == names
