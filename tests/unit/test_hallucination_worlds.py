"""Scenes of habit: fixed couples that keep company, look-alikes, degradations; POPE and CHAIR are exact on them."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from vlmopt.metrics import chair, is_yes, phrases, pope_scores
from vlmopt.synthetic.asked import SIZES, SIZES_OF
from vlmopt.synthetic.hallucination import (
    ALIKE_COLOURS,
    ALIKE_SHAPES,
    DEGRADATIONS,
    DESCRIBE,
    class_of,
    classes,
    couples,
    hallucination,
    partners,
)
from vlmopt.synthetic.polling import SPLITS, poll, pope
from vlmopt.synthetic.words import CELL
from vlmopt.training.vocabulary import build_tokenizer, word_id

LEXICON = phrases(classes(), "classes of the images")


@pytest.fixture(scope="module")
def worlds():
    return [hallucination(seed, (168, 168)) for seed in range(300)]


def test_same_seed_same_image_whatever_the_degradation_of_another():
    random.seed(1)
    first = hallucination(7, degradation="blur")
    hallucination(8)
    second = hallucination(7, degradation="blur")
    assert first.image.tobytes() == second.image.tobytes()
    assert first.questions == second.questions
    assert first.image.tobytes() != hallucination(7).image.tobytes()
    assert first.objects == hallucination(7).objects == hallucination(7, degradation="contrast").objects


def test_couples_are_fixed_and_partners_look_nothing_alike():
    assert couples()[0] == ("green triangle", "orange square")
    assert sorted(name for pair in couples() for name in pair) == sorted(classes())
    assert len(couples()) == 16
    for name, partner in partners().items():
        assert partners()[partner] == name
        (colour, shape), (other_colour, other_shape) = name.split(), partner.split()
        assert colour != other_colour
        assert shape != other_shape
        assert ALIKE_COLOURS[colour] != other_colour
        assert ALIKE_SHAPES[shape] != other_shape


@pytest.mark.parametrize("company", [0.0, 0.5, 0.85, 1.0])
def test_company_is_kept_as_often_as_asked_and_look_alikes_stand_in(company):
    kept = asked = 0
    for seed in range(150):
        names = hallucination(seed, (168, 168), company=company).classes
        for leader, beside in zip(names[::2], names[1::2], strict=True):
            asked, kept = asked + 1, kept + (beside == partners()[leader])
            colour, shape = partners()[leader].split()
            alike = f"{ALIKE_COLOURS[colour]} {shape}", f"{colour} {ALIKE_SHAPES[shape]}"
            assert beside in (f"{colour} {shape}", *alike)
    assert kept / asked == pytest.approx(company, abs=0.06)


def test_couples_stand_together_and_are_described_together():
    together = asked = 0
    for seed in range(60):
        world = hallucination(seed)
        named = LEXICON.mentions(world.questions[0].answer)
        for leader, beside in zip(world.objects[::2], world.objects[1::2], strict=True):
            assert -2 < beside.centre[0] - leader.centre[0] <= 16
            assert 4 <= max(beside.box[1] - leader.box[3], leader.box[1] - beside.box[3]) <= 24
            assert all((side + 2) % CELL <= 4 for thing in (leader, beside) for side in thing.box[:2])
            together += named.index(class_of(beside)) == named.index(class_of(leader)) + 1
            asked += 1
    assert together > 0.75 * asked


def test_popular_classes_come_first(worlds):
    counts = Counter(name for world in worlds for name in world.classes)
    popular = {name for pair in couples()[:4] for name in pair}
    assert sum(counts[name] for name in popular) > 0.35 * counts.total()
    assert set(counts) == set(classes())


@pytest.mark.parametrize("size", sorted({*SIZES, *SIZES_OF["llava"]}))
def test_images_are_well_formed_in_every_size(size):
    for seed in range(24):
        world = hallucination(seed, size, degradation=DEGRADATIONS[seed % 4])
        assert world.image.size == size
        assert len(world.objects) in (4, 6)
        assert len(set(world.classes)) == len(world.classes)
        for i, a in enumerate(world.objects):
            assert 0 <= a.box[0] < a.box[2] <= size[0]
            assert 0 <= a.box[1] < a.box[3] <= size[1]
            for b in world.objects[:i]:
                apart = (a.box[2] <= b.box[0], b.box[2] <= a.box[0], a.box[3] <= b.box[1], b.box[3] <= a.box[1])
                assert any(apart)


def test_degradations_take_away_what_they_say():
    for seed in range(8):
        clean, blur, contrast, small = (
            np.asarray(hallucination(seed, degradation=d).image, dtype=float) for d in DEGRADATIONS
        )
        steps = [np.abs(np.diff(drawn, axis=1)).max() for drawn in (clean, blur, contrast)]
        assert steps[1] < 0.35 * steps[0]
        assert steps[2] < 0.55 * steps[0]
        background = np.median(small.reshape(-1, 3), axis=0)
        painted = [np.abs(drawn - background).max(-1).__gt__(40).mean() for drawn in (clean, small)]
        assert painted[1] < 0.4 * painted[0]


def test_questions_are_true_and_half_of_them_are_what_habit_expects():
    for seed in range(40):
        world = hallucination(seed, (168, 168))
        description, *presence = world.questions
        assert description.text == DESCRIBE
        assert sorted(LEXICON.mentions(description.answer)) == sorted(world.classes)
        asked = [LEXICON.mentions(question.text)[0] for question in presence]
        assert asked[::2] == [partners()[leader] for leader in world.classes[::2]]
        assert not {partners()[name] for name in asked[1::2]} & set(world.classes)
        for name, question in zip(asked, presence, strict=True):
            assert question.answer == ("yes" if name in world.classes else "no")
    assert len(hallucination(0, questions=1).questions) == 1


def test_every_word_is_one_the_checkpoints_know():
    tokenizer = build_tokenizer()
    for word in {"yes", "no", *" ".join(classes()).split()}:
        word_id(tokenizer, word)
    question = hallucination(0).questions[1].text
    assert len(tokenizer(question)["input_ids"]) == len(question.strip("?").split()) + 1


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"degradation": "fog"}, "fog"),
        ({"company": 1.2}, "1.2"),
        ({"size": (225, 224)}, "14"),
        ({"size": (112, 112)}, "no room"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_are_refused(bad, named):
    with pytest.raises(ValueError, match=named):
        hallucination(**{"seed": 0, **bad})


# --- POPE ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_polls_are_balanced_and_never_repeat(worlds, split):
    polls = pope(worlds, split)
    assert len(polls) == 6 * len(worlds)
    assert [poll.label for poll in polls] == ["yes", "no"] * (3 * len(worlds))
    for image, world in enumerate(worlds):
        mine = [poll for poll in polls if poll.image == image]
        assert len({poll.name for poll in mine}) == 6
        assert [poll.name for poll in mine[::2]] == world.classes[:3]
        assert not {poll.name for poll in mine[1::2]} & set(world.classes)
    assert pope(worlds, split) == polls


IMAGES = [
    ["cat", "dog", "bird"],
    ["cat", "dog", "fox"],
    ["cat", "dog", "eel"],
    ["ant", "cat", "fox"],
    ["owl", "bee", "elk"],
]


def absent(split, image):
    return [poll.name for poll in poll_of(split) if poll.image == image and poll.label == "no"]


def poll_of(split):
    return poll(IMAGES, split)


def test_popular_denies_the_most_frequent_names_first():
    """cat 4, dog 3, fox 2, the others 1 in order of appearance."""
    assert absent("popular", 4) == ["cat", "dog", "fox"]
    assert absent("popular", 0) == ["fox", "eel", "ant"]


def test_adversarial_denies_what_goes_most_often_with_the_object_asked_about():
    """With cat: dog 3, fox 2, then bird, eel, ant once each, in order of appearance."""
    assert absent("adversarial", 0)[0] == "fox"
    assert absent("adversarial", 0)[1] == "eel"  # with dog go cat, bird, fox, eel: the first two are there, fox is used
    assert absent("adversarial", 3)[1] == "dog"  # the second object of that image is the cat


def test_every_round_asks_what_goes_with_its_own_object():
    images = [["cat", "dog", "bird"], ["cat", "fox", "ant"], ["dog", "eel", "bee"], ["bird", "owl", "elk"]]
    polls = poll(images, "adversarial")[:6]
    assert [item.name for item in polls] == ["cat", "fox", "dog", "eel", "bird", "owl"]


def test_a_round_without_company_left_asks_a_random_name():
    """Nothing absent ever goes with owl, bee or elk."""
    assert len(set(absent("adversarial", 4))) == 3
    assert not set(absent("adversarial", 4)) & set(IMAGES[4])


def test_random_denies_every_name_in_time():
    seen = {item.name for seed in range(60) for item in poll(IMAGES, "random", seed=seed) if item.label == "no"}
    assert seen == {name for image in IMAGES for name in image}


def test_only_the_article_bends_before_a_vowel():
    texts = {item.name: item.text for item in poll_of("popular")}
    assert texts["ant"] == "Is there an ant?"
    assert texts["cat"] == "Is there a cat?"


def test_polls_refuse_what_they_cannot_ask():
    with pytest.raises(ValueError, match="image 0 has 2 objects"):
        poll([["cat", "dog"], ["fox", "eel", "bee"]], "random")
    with pytest.raises(ValueError, match="used up in image 0"):
        poll([["cat", "dog", "fox"]], "random")
    with pytest.raises(ValueError, match="nasty"):
        poll(IMAGES, "nasty")


# --- metrics equal what can be computed by hand -------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_models_without_a_mind_score_as_computed(worlds, split):
    polls = pope(worlds, split)
    labels = [poll.label == "yes" for poll in polls]
    oracle = pope_scores(labels, [is_yes(poll.label, "strict") for poll in polls])
    assert (oracle.accuracy, oracle.precision, oracle.recall, oracle.f1, oracle.yes_ratio) == (1, 1, 1, 1, 0.5)
    agreeable = pope_scores(labels, [True] * len(labels))
    assert (agreeable.accuracy, agreeable.precision, agreeable.recall) == (0.5, 0.5, 1)
    assert agreeable.f1 == pytest.approx(2 / 3)
    assert agreeable.yes_ratio == 1
    contrary = pope_scores(labels, [False] * len(labels))
    assert (contrary.accuracy, contrary.f1, contrary.yes_ratio) == (0.5, 0, 0)
    rng = random.Random(0)
    coin = pope_scores(labels, [rng.random() < 0.5 for _ in labels])
    for figure in (coin.accuracy, coin.precision, coin.recall, coin.f1, coin.yes_ratio):
        assert figure == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("repeated", [0.0, 0.5])
def test_chair_converges_to_the_rate_of_invention(worlds, rate, repeated):
    """Every mention is invented with probability `rate`; repeating what is there lowers chair_i alone."""
    rng = random.Random(5)
    captions = []
    for world in worlds:
        absent = [name for name in classes() if name not in world.classes]
        said = [rng.choice(absent) if rng.random() < rate else name for name in world.classes for _ in range(2)]
        said += [name for name in said if name in world.classes and rng.random() < repeated]
        captions.append(", ".join(f"a {name}" for name in said))
    figures = chair(captions, [world.classes for world in worlds], LEXICON).figures
    expected = rate / (1 + repeated * (1 - rate))
    assert figures["chair_i"] == pytest.approx(expected, abs=0.02)
    assert figures["chair_s"] == pytest.approx(
        1 - np.mean([(1 - rate) ** (2 * len(world.objects)) for world in worlds]), abs=0.06
    )
