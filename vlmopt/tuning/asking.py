"""Put candidates to a model through the runner of evaluations: sharded, recorded, asked once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from ..evaluation.data import Data, Sample
from ..evaluation.processes import Processes
from ..evaluation.records import Record, read
from ..evaluation.runner import FAILURES, Runner
from ..policy import Policy
from .marks import differences
from .rules import DENSE, Marks
from .splits import Image


@dataclass(kw_only=True)
class Asked:
    """Answers of candidates, on one part of the data.

    Attributes:
        runner: what a run of everything would be; its policies are dense and all candidates.
        images: of this part, in the order in which they are asked about.
        mixed: whether the questions are marked in different ways.
        looks: numbers of images between which questions share batches, so that no answer depends on what came later.
        later: answers that other parts will take at most.
        seconds, answers: spent here in this start.
        records: (policy, sample) -> answer, as far as asked.
    """

    runner: Runner
    team: Processes
    images: Sequence[Image]
    looks: Sequence[int]
    title: str
    mixed: bool
    later: int = 0
    seconds: float = 0.0
    answers: int = 0
    records: dict[tuple[str, str], Record] = field(default_factory=dict)

    def __call__(self, names: Sequence[str], count: int) -> Mapping[str, Marks]:
        """Return what the first `count` images say about candidates; ask what was not asked yet.

        Of a candidate that failed on several samples in a row, and was asked no more, they say nothing: the images
        that it did answer are no fair choice of them.
        """
        fresh = self.answers
        bounds = [0, *(look for look in self.looks if look < count), count]
        for start, stop in pairwise(bounds):
            samples = [sample for image in self.images[start:stop] for sample in image]
            wanted = [name for name in (DENSE, *names) if any((name, s.id) not in self.records for s in samples)]
            if wanted:
                self.ask(wanted, samples)
        if self.team.main and self.answers > fresh and self.later:
            left = len(names) * questions(self.images[count:]) + self.later
            print(f"at most {left * self.seconds / self.answers / 60:.1f} minutes more at this pace", flush=True)
        images = self.images[:count]
        whole = [name for name in names if all((name, s.id) in self.records for image in images for s in image)]
        return {name: differences(images, self.records, name, self.mixed) if name in whole else {} for name in names}

    def ask(self, names: Sequence[str], samples: Sequence[Sample]) -> None:
        """Answer samples; a candidate that fails on several samples in a row is not asked again."""
        left, start, before = list(names), time.monotonic(), len(self.records)
        if self.team.main:
            print(f"{self.title}: {len(samples)} questions, {said(left)}", flush=True)
        while True:
            runner = self.share(left, samples)
            try:
                runner.go()
                break
            except ValueError:
                failing = {name for name, count in runner.failures.items() if count >= FAILURES}
                if not failing or DENSE in failing:
                    raise
                left = [name for name in left if name not in failing]
        self.team.wait()
        own = {sample.id for image in self.images for sample in image}  # the other part must not be seen from here
        self.records = {record.key: record for record in read(self.runner.asking.run) if record.id in own}
        self.team.wait()
        self.seconds += time.monotonic() - start
        self.answers += len(self.records) - before

    def share(self, names: Sequence[str], samples: Sequence[Sample]) -> Runner:
        """Return the runner of some candidates on some samples."""
        data: Data = replace(self.runner.data, samples=tuple(samples))
        policies: dict[str, Policy] = {name: self.runner.policies[name] for name in names}
        return replace(self.runner, data=data, policies=policies, done=set(), failures={})


def questions(images: Sequence[Image]) -> int:
    return sum(map(len, images))


def said(names: Sequence[str]) -> str:
    candidates = [name for name in names if name != DENSE]
    return f"{len(candidates)} candidates" if len(candidates) > 1 else (candidates or [DENSE])[0]
