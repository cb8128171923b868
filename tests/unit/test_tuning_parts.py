"""The parts of a search, each alone: how images are dealt, what answers are worth, what is tried, what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from tests.support.families import FAMILIES
from vlmopt.evaluation.data import Sample
from vlmopt.evaluation.records import Record
from vlmopt.policy import Policy
from vlmopt.tuning.asking import Asked
from vlmopt.tuning.marks import differences, kinds, mark, overlap
from vlmopt.tuning.result import Tried, front
from vlmopt.tuning.rules import Cost, Rules, Seen
from vlmopt.tuning.space import halton, line, read, space, written
from vlmopt.tuning.splits import images_of, split
from vlmopt.tuning.timing import counted
from vlmopt.tuning.wanted import Unresolvable, Wanted, check_images


def sample(name: str, image: str, category: str = "", **more: Any) -> Sample:
    return Sample(**{
        "id": name, "question": "?", "kind": "exact", "images": (image,), "answer": "a", "category": category,
        "picture": image, **more,
    })  # fmt: skip


def pictures(folder: Path, count: int) -> list[str]:
    for number in range(count):
        (folder / f"{number}.png").write_bytes(bytes([number, number]))
    return [f"{number}.png" for number in range(count)]


def test_copies_of_an_image_go_to_one_side(tmp_path: Path) -> None:
    names = pictures(tmp_path, 30)
    (tmp_path / "copy.png").write_bytes((tmp_path / "7.png").read_bytes())
    samples = [sample(f"q{i}", name) for i, name in enumerate([*names, "copy.png", "7.png"])]
    samples.append(sample("pair", "copy.png", images=("copy.png", "8.png"), picture="a pair"))
    (group,) = [image for image in images_of(samples, tmp_path) if len(image) > 1]
    assert {s.id for s in group} == {"q7", "q8", "q30", "q31", "pair"}
    parts = split(samples, tmp_path, seed=0, most=512)
    assert len(parts.search) == 10
    assert len(parts.holdout) == 19
    ids = [s.id for part in (parts.search, parts.holdout) for image in part for s in image]
    assert sorted(ids) == sorted(s.id for s in samples)


def test_every_beginning_of_both_parts_has_the_same_mixture(tmp_path: Path) -> None:
    names = pictures(tmp_path, 90)
    samples = [sample(f"q{i}", name, "rare" if i % 9 == 0 else "common") for i, name in enumerate(names)]
    parts = split(samples, tmp_path, seed=3, most=512)
    for part in (parts.search, parts.holdout):
        for length in range(9, len(part) + 1, 9):
            rare = sum(image[0].category == "rare" for image in part[:length])
            assert abs(rare - length / 9) <= 1.5
    assert split(samples, tmp_path, seed=3, most=512).digest == parts.digest
    assert split(samples, tmp_path, seed=4, most=512).digest != parts.digest
    assert len(split(samples, tmp_path, seed=3, most=12).search) == 12


def test_samples_that_cannot_be_asked_are_in_neither_part(tmp_path: Path) -> None:
    names = pictures(tmp_path, 6)
    samples = [sample(f"q{i}", name, error="gone" if i < 5 else None) for i, name in enumerate(names)]
    with pytest.raises(ValueError, match="1 images can be asked about"):
        split(samples, tmp_path, seed=0, most=512)


def record(policy: str, name: str, **facts: Any) -> Record:
    told = {"question": "?", "answer": None, "prediction": "x", "category": "", "kind": "exact", "correct": None}
    return Record(**{"id": name, "index": 0, "policy": policy, **told, **facts})


def test_what_an_answer_is_worth() -> None:
    dense = record("dense", "1", correct=True)
    assert mark(record("p", "1", correct=False), dense, False) == {"accuracy": 0.0}
    assert mark(record("p", "1", kind="anls", correct=0.75), dense, False) == {"anls": 0.75}
    assert mark(record("p", "1", correct=True), record("dense", "1", error="gone"), False) == {}
    assert mark(record("p", "1", error="out of memory", correct=False), dense, False) == {"accuracy": 0.0}
    counts = {"said": 4, "false": 1, "there": 2, "found": 1}
    caption = record("p", "1", kind="caption", metrics=counts)
    assert mark(caption, caption, False) == {"chair_i": 0.75, "chair_recall": 0.5}
    assert mark(caption, caption, True) == {"score": pytest.approx(0.6)}
    silent = record("p", "1", kind="caption", metrics={"said": 0, "false": 0, "there": 2, "found": 0})
    assert mark(silent, caption, False) == {"chair_i": 1.0, "chair_recall": 0.0}
    short = record("p", "1", prediction="The red one.")
    assert mark(short, record("dense", "1", prediction="the red one"), False) == {"agreement": 1.0}
    assert mark(short, record("dense", "1", prediction="blue"), False) == {"agreement": 0.0}
    long = record("p", "1", kind="open", prediction="a dog and a cat")
    assert mark(long, record("dense", "1", kind="open", prediction="a dog"), False) == {
        "agreement": pytest.approx(4 / 7)
    }
    assert mark(record("p", "1", kind="open", error="no", prediction=None), long, False) == {"agreement": 0.0}


def test_overlap_counts_words_in_order() -> None:
    assert overlap("", "") == 1.0
    assert overlap("a b", "a b") == 1.0
    assert overlap("a b", "c d") == 0.0


def test_an_image_counts_once_however_many_questions_there_are() -> None:
    images = [(sample("1a", "1"), sample("1b", "1")), (sample("2", "2"),), (sample("3", "3"),)]
    right = {("dense", name): record("dense", name, correct=True) for name in ("1a", "1b", "2", "3")}
    own = {("p", name): record("p", name, correct=name != "1a") for name in ("1a", "1b", "2")}
    found = differences(images, {**right, **own}, "p", False)
    np.testing.assert_array_equal(found["accuracy"], [-0.5, 0.0])  # the third image has no answer yet
    doubled = [image * 2 for image in images]
    np.testing.assert_array_equal(differences(doubled, {**right, **own}, "p", False)["accuracy"], [-0.5, 0.0])


def test_the_images_before_a_candidate_failed_say_nothing_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked no more after some failures in a row; what it answered is no fair choice of the images."""
    images = [(sample(str(number), str(number)),) for number in range(4)]
    right = {
        (name, str(n)): record(name, str(n), correct=True) for name in ("dense", "good", "fails") for n in range(4)
    }
    del right["fails", "3"]
    team: Any = SimpleNamespace(main=False)
    asked = Asked(runner=cast(Any, None), team=team, images=images, looks=(), title="", mixed=False, records=right)
    monkeypatch.setattr(Asked, "ask", lambda self, names, samples: None)
    found = asked(["good", "fails"], 4)
    np.testing.assert_array_equal(found["good"]["accuracy"], [0.0] * 4)
    assert found["fails"] == {}
    np.testing.assert_array_equal(asked(["fails"], 3)["fails"]["accuracy"], [0.0] * 3)


def test_how_samples_are_marked() -> None:
    samples = [
        sample("1", "1"), sample("2", "2", kind="anls"), sample("3", "3", kind="open", answer=None),
        sample("4", "4", kind="caption", objects=("dog",)), sample("5", "5", kind="caption"),
    ]  # fmt: skip
    assert kinds(samples) == {"accuracy", "anls", "agreement", "chair"}
    assert kinds(samples[:1]) == {"accuracy"}


def test_the_usual_candidates_come_from_the_registries_and_pass_the_check() -> None:
    model = FAMILIES["llava"].fresh()
    found = space(model, Policy(), longest=100)
    assert found.chains[0][:2] == ("div_prune:keep_ratio=0.75", "div_prune:keep_ratio=0.5")
    assert 40 <= len(found.policies) <= 80
    assert all(Policy.load(name) == policy for name, policy in found.policies.items())
    assert "below 4096 nothing is left out" in found.refused["sparse prefill"]
    tried = {chain[0].partition(":")[0] for chain in found.chains}
    assert tried >= {"uniform", "random", "fastv", "pyramid_drop"}
    for name in ("pixel_redundancy", "resize:keep_ratio=0.5"):  # this tower takes images of one size
        assert name in found.refused


def test_what_every_candidate_has() -> None:
    base = Policy(seed=5)
    found = space(FAMILIES["llava"].fresh(), base, 10_000, ["uniform:keep_ratio=0.5", {"method": "min_p"}])
    assert [policy.seed for policy in found.policies.values()] == [5, 5]
    assert found.policies["min_p"].prefill is not None


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ("balanced", [["div_prune:keep_ratio=0.25"]]),
        ({"method": "uniform", "keep_ratio": [0.2, 0.5]}, [["uniform:keep_ratio=0.5", "uniform:keep_ratio=0.2"]]),
        (
            {"method": "fastv", "keep_ratio": 0.5, "layer": [2, 4]},
            [["fastv:keep_ratio=0.5,layer=2"], ["fastv:keep_ratio=0.5,layer=4"]],
        ),
        (
            {"method": "pyramid_drop", "keep_ratio": [0.5], "layers": [1, 2]},
            [["pyramid_drop:layers=[1,2],keep_ratio=0.5"]],
        ),
    ],
)
def test_entries_of_a_space_file(entry: Any, names: list[list[str]]) -> None:
    assert [["+".join(map(line, methods)) for methods in chain] for chain in written(entry)] == names


def test_ranges_are_filled_evenly() -> None:
    (*chains,) = written({"method": "min_p", "tau": {"min": 0.8, "max": 1.0}})
    values = sorted(chain[0][0]["tau"] for chain in chains)
    assert len(values) == 8
    assert np.diff([0.8, *values, 1.0]).max() < 0.05
    assert [halton(n, 2) for n in (1, 2, 3)] == [0.5, 0.25, 0.75]


def test_a_space_file_that_is_none(tmp_path: Path) -> None:
    for text, words in (("{", "cannot be read as JSON"), ("{}", "must hold a list"), ("[]", "must hold a list")):
        (tmp_path / "space.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            read(tmp_path / "space.json")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"method": "unifrom", "keep_ratio": [0.5]}, "did you mean 'uniform'"),
        ({"method": "uniform", "keep_ratio": [0.5, 2]}, "keep_ratio"),
        ({"method": "uniform", "keep_ratio": []}, "keep_ratio"),
        ({"method": "min_p", "tau": {"min": 0.9, "max": 0.8}}, "two numbers a < b, got"),
        ({"method": "min_p", "tau": {"min": "a", "max": 0.8}}, "two numbers a < b"),
        ("dense", "changes nothing"),
        ([], "changes nothing"),
        (1, "of type int"),
    ],
)
def test_an_entry_that_cannot_be_right_is_named(entry: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"entry 2 of the space, .*{words}"):
        Wanted(space=["balanced", entry])


def test_candidates_that_only_this_model_refuses_are_listed_and_each_is_tried_once() -> None:
    model = FAMILIES["llava"].fresh()
    deep = "fastv:keep_ratio=0.5,layer=99"
    found = space(model, Policy(), 100, [deep, "uniform:keep_ratio=0.5", {"method": "uniform", "keep_ratio": [0.5]}])
    assert found.chains == (("uniform:keep_ratio=0.5",),)
    assert list(found.refused) == [deep]
    with pytest.raises(ValueError, match=f"none of 1 candidates can work on this model; the first, {deep}"):
        space(model, Policy(), 100, [deep])


def test_costs_that_are_counted() -> None:
    tokens = {"prompt": 100, "visual": 64, "kept": 16}
    answers = {
        ("dense", "1"): record("dense", "1", tokens={**tokens, "layer_average": 64.0}, kv_bytes=800, batch=2),
        ("p", "1"): record("p", "1", tokens={**tokens, "layer_average": 16.0}, kv_bytes=200, batch=1),
        ("p", "2"): record("p", "2"),
        ("dense", "2"): record("dense", "2"),
    }
    assert counted(answers, ["p"], "tokens") == {"p": Cost.exact(0.25)}
    assert counted(dict(reversed(answers.items())), ["p"], "tokens") == counted(answers, ["p"], "tokens")
    assert counted(answers, ["p"], "kv_bytes") == {"p": Cost.exact(0.5)}


def test_the_front() -> None:
    def tried(name: str, ratio: float, difference: float) -> Tried:
        return Tried(name, Seen(64, "accuracy", difference, -1.0, 1.0), Cost.exact(ratio))

    candidates = [tried("slow", 0.9, 0.0), tried("beaten", 0.8, -0.02), tried("fast", 0.5, -0.01), Tried("unasked")]
    assert [one.name for one in front(candidates)] == ["slow", "fast"]


def test_looks_that_add_little_are_left_out() -> None:
    rules = Rules(budget=0.1)
    assert rules.looks(2000) == [64, 128, 256, 512]
    assert rules.looks(300) == [64, 128, 300]
    assert rules.looks(40) == [40]


def test_too_few_images() -> None:
    with pytest.raises(Unresolvable, match=r"should have 464 images .* it has 100, less than half"):
        check_images(Wanted(budget=2.0), 100)
    assert "it has 100" in check_images(Wanted(budget=2.0, best_effort=True), 100)
    assert "it has 300" in check_images(Wanted(budget=2.0), 300)
    with pytest.raises(
        Unresolvable, match=r"have 1855 images .* about 2367 images in all \(a third of them, 512 at most"
    ):
        check_images(Wanted(), 100)
    with pytest.raises(Unresolvable, match=r"at 99\.99%"):
        check_images(Wanted(confidence=0.9999), 100)


def test_a_tuned_policy_round_trips() -> None:
    policy = Policy.load({"prune": [{"method": "uniform", "keep_ratio": 0.5}], "tuned": {"dtype": "float32"}})
    assert json.loads(policy.to_json())["tuned"] == {"dtype": "float32"}
    assert Policy.load(policy.to_dict()).tuned == {"dtype": "float32"}
    assert policy == Policy.load("uniform:keep_ratio=0.5")
    assert "tuned" not in Policy().to_dict()
