"""Yes/no questions about objects that are there and objects that are not, by the construction of POPE.

Polling-based Object Probing Evaluation (Li et al., "Evaluating Object Hallucination in Large Vision-Language Models",
arXiv 2305.10355). The published generator also spoils the "a" inside words before a vowel; here only the article bends.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from .hallucination import HabitWorld, is_there

SPLITS: tuple[str, ...] = ("random", "popular", "adversarial")
ROUNDS = 3


@dataclass(frozen=True)
class Poll:
    """One question: `image` is the index of the image, `label` "yes" or "no", `name` the object asked about."""

    image: int
    text: str
    label: str
    name: str


def pope(worlds: Sequence[HabitWorld], split: str, *, rounds: int = ROUNDS, seed: int = 0) -> list[Poll]:
    """Ask `rounds` questions with "yes" and as many with "no" about every image; see `poll`."""
    return poll([world.classes for world in worlds], split, rounds=rounds, seed=seed)


def poll(images: Sequence[Sequence[str]], split: str, *, rounds: int = ROUNDS, seed: int = 0) -> list[Poll]:
    """Ask about annotated objects and about absent ones in turn.

    Args:
        images: the annotated objects of every image, in a fixed order; repetitions count once.
        split: where the absent object of a round comes from. "random": any name of the data set; "popular": the most
            frequent one; "adversarial": the one that goes most often with the object asked about just before. Ties go
            to the name seen first; a round for which no name is left asks a random one.
        rounds: pairs of questions per image.
        seed: of the random choices.

    Returns:
        2 * rounds questions per image, "yes" and "no" in turn, no object twice in an image.

    Raises:
        ValueError: unknown split, an image with too few objects, or a data set with too few names to deny.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: choose from {', '.join(SPLITS)}")
    annotated = [tuple(dict.fromkeys(objects)) for objects in images]
    frequency = Counter(name for objects in annotated for name in objects)
    company: dict[str, Counter[str]] = {name: Counter() for name in frequency}
    for objects in annotated:
        for name, other in permutations(objects, 2):
            company[name][other] += 1
    rng = random.Random(f"pope/{split}/{seed}")
    polls: list[Poll] = []
    for image, objects in enumerate(annotated):
        if len(objects) < rounds:
            raise ValueError(f"image {image} has {len(objects)} objects, {rounds} rounds need as many: leave it out")
        used = set(objects)
        for name in objects[:rounds]:
            free = [other for other in frequency if other not in used]
            if not free:
                raise ValueError(f"every name of the data set is used up in image {image}: ask fewer rounds")
            rank: Counter[str] = {"popular": frequency, "adversarial": company[name]}.get(split, Counter())
            going = [other for other in rank if other not in used]  # in the order in which they were first seen
            absent = max(going, key=rank.__getitem__) if going else rng.choice(free)
            used.add(absent)
            polls += [Poll(image, is_there(name), "yes", name), Poll(image, is_there(absent), "no", absent)]
    return polls
