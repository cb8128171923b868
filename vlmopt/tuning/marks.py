"""Mark an answer beside the dense one: right or wrong where that is known, else whether it is the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher

import numpy as np

from ..evaluation.data import Sample
from ..evaluation.figures import agreement
from ..evaluation.records import DENSE, Record
from ..metrics.answers import plain
from ..metrics.stated import stated
from .rules import Marks
from .splits import Image

AGREEMENT = "agreement"  # loyalty to dense; nothing is known about what is right
SCORE = "score"  # of data whose questions are marked in different ways
LONG = ("caption", "open")  # kinds whose answers are compared word by word

Answers = Mapping[tuple[str, str], Record]  # (policy, sample) -> answer


def kinds(samples: Iterable[Sample]) -> set[str]:
    """Return how samples are marked: accuracy, anls, chair, agreement."""
    return {kind(sample) for sample in samples}


def kind(sample: Sample) -> str:
    if sample.kind in LONG:
        return "chair" if sample.kind == "caption" and sample.objects is not None else AGREEMENT
    return "anls" if sample.kind == "anls" else "accuracy"


def mark(record: Record, dense: Record, mixed: bool) -> dict[str, float]:
    """Return the marks of an answer, 0 to 1, more is better; none for a sample that not even dense could be asked.

    accuracy, or anls, where the right answer is known; of captions with known objects chair_i (share of the named
    objects that are there) and chair_recall (share of those there that are named); else agreement with dense. In mixed
    data all of these are one score, of captions the harmonic mean. A policy that fails on a sound sample has nothing
    right.
    """
    if dense.error is not None:
        return {}
    if record.error is not None:
        return dict.fromkeys(mark(dense, dense, mixed), 0.0)
    if record.correct is not None:
        return {SCORE if mixed else "anls" if record.kind == "anls" else "accuracy": float(record.correct)}
    if "said" in record.metrics:
        said, false, there, found = (record.metrics[name] for name in ("said", "false", "there", "found"))
        right, named = 1 - false / said if said else 1.0, found / there if there else 1.0
        if mixed:
            return {SCORE: 2 * right * named / (right + named) if right + named else 0.0}
        return {"chair_i": right, "chair_recall": named}
    if record.kind in LONG:
        same = overlap(record.prediction or "", dense.prediction or "")
    else:
        same = agreement(record, dense)[AGREEMENT][0]
    return {SCORE if mixed else AGREEMENT: same}


def overlap(answer: str, dense: str) -> float:
    """Return the share of the words of two answers that match in order, 0 to 1: 2 m / (n + n')."""
    own, other = (plain(stated(text)).split() for text in (answer, dense))
    return SequenceMatcher(None, own, other, autojunk=False).ratio()


def differences(images: Sequence[Image], answers: Answers, policy: str, mixed: bool) -> Marks:
    """Return mark -> differences of a policy from dense, one per image: the mean over the questions about it.

    Every image counts once, however many questions there are about it. An image is left out of a mark that none of its
    questions has, and wherever an answer about it is missing.
    """
    found: dict[str, list[float]] = {}
    for image in images:
        keys = [((policy, sample.id), (DENSE, sample.id)) for sample in image]
        if all(key in answers for pair in keys for key in pair):
            for name, values in apart([(answers[own], answers[dense]) for own, dense in keys], mixed):
                found.setdefault(name, []).append(sum(values) / len(values))
    return {name: np.array(values) for name, values in sorted(found.items())}


def apart(pairs: Iterable[tuple[Record, Record]], mixed: bool) -> Iterable[tuple[str, list[float]]]:
    """Return mark -> differences, one per question of an image that has it."""
    found: dict[str, list[float]] = {}
    for own, dense in pairs:
        before = mark(dense, dense, mixed)
        for name, value in mark(own, dense, mixed).items():
            found.setdefault(name, []).append(value - before[name])
    return found.items()
