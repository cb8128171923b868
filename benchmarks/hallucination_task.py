"""The images of `hallucination.py`, the questions about them, and what was measured on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from table_parts import records
from tqdm import tqdm

from vlmopt.synthetic.asked import SIZES, SIZES_OF
from vlmopt.synthetic.hallucination import DEGRADATIONS, DESCRIBE, HabitWorld, hallucination
from vlmopt.synthetic.polling import ROUNDS, SPLITS, Poll, pope

FIRST_SEED = 620_000_000  # training uses 1e9 and up, calibration 4e8, the model cards 5e8, pruning 6.11e8
BLOCK_SEEDS = 100_000
COMPANY = 0.5  # half of what habit expects is not there
GROUPS = {"degraded": DEGRADATIONS[1:], "clean": DEGRADATIONS[:1]}
LETTERS: dict[bool | None, str] = {True: "y", False: "n", None: "?"}


def seed_of(block: int) -> int:
    """Return the seed of the first image of a block."""
    return FIRST_SEED + block * BLOCK_SEEDS


@dataclass(frozen=True)
class Task:
    """Images to describe, of which the first `polled` are also asked about by some splits of POPE."""

    worlds: list[HabitWorld]
    polls: dict[str, list[Poll]]
    facts: dict[str, Any]

    @property
    def asked(self) -> list[tuple[int, str]]:
        """Every (image, question) once; questions of one length of answer and images of one shape together."""
        once = dict.fromkeys((p.image, p.text) for polls in self.polls.values() for p in polls)
        pairs = [*once, *((image, DESCRIBE) for image in range(len(self.worlds)))]
        return sorted(pairs, key=lambda pair: (pair[1] == DESCRIBE, self.worlds[pair[0]].size))


def task(
    images: int, polled: int, model_type: str, seed: int, splits: Sequence[str] = SPLITS, rounds: int = ROUNDS
) -> Task:
    """Return `images` scenes of seeds from `seed` on, degradations and the sizes that suit the model in turn."""
    sizes = SIZES_OF.get(model_type, SIZES)
    worlds = [
        hallucination(
            seed + n,
            sizes[n // len(DEGRADATIONS) % len(sizes)],
            degradation=DEGRADATIONS[n % len(DEGRADATIONS)],
            company=COMPANY,
        )
        for n in tqdm(range(images), desc="images", leave=False)
    ]
    facts = {"pictures": images, "polled": polled, "company": COMPANY, "seed": seed}
    if (tuple(splits), rounds) != (SPLITS, ROUNDS):
        facts |= {"splits": list(splits), "rounds": rounds}
    return Task(worlds, {split: pope(worlds[:polled], split, rounds=rounds) for split in splits}, facts)


def cells() -> Iterator[dict[str, Any]]:
    """Yield what was measured, oldest first."""
    yield from records("hallucination")
