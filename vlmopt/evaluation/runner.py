"""Run every policy on the same samples in the same batches: ask, record, go on where an interruption stopped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from ..api import optimized
from ..measure import PeakMemory
from ..policy import Policy
from .data import Data, Sample
from .generation import device_map, generate, input_device
from .prompts import Asking, Batch
from .recorder import Recorder
from .records import DENSE, Record, Writer, part, read

ROUND = 8  # batches that a policy answers before the next one has its turn: noise reaches all alike
HELD = 2**30  # bytes of prepared inputs that end a round early
WARMUP = 2  # tokens that the unmeasured call generates after a policy is installed
FAILURES = 16  # samples in a row on which a policy may fail


@dataclass(kw_only=True)
class Runner:
    """One process's share of a run.

    Attributes:
        policies: name -> policy; dense first.
        rank, count: this process, and how many there are.
        done: (policy, sample) that have a record.
        failures: policy -> samples in a row on which it failed.
    """

    data: Data
    asking: Asking
    recorder: Recorder
    policies: Mapping[str, Policy]
    batch_size: int
    rank: int = 0
    count: int = 1
    done: set[tuple[str, str]] = field(default_factory=set)
    failures: dict[str, int] = field(default_factory=dict)

    def go(self) -> None:
        """Answer everything of this process's share that has no record yet.

        Raises:
            ValueError: a policy fails on sample after sample. OSError: the disk is full. Nothing recorded is lost.
        """
        records = read(self.asking.run)
        self.done = {record.key for record in records}
        self.recorder.dense = {record.id: record.prediction for record in records if record.policy == DENSE}
        todo = self._share()
        total = sum(len(self._open(name, batch)) for name in self.policies for batch in todo)
        title = "answers" if self.count == 1 else f"answers, process 1 of {self.count}"
        bar = tqdm(total=total, unit="answer", desc=title, disable=self.rank > 0)
        writer = Writer(part(self.asking.run, self.rank))
        try:
            if self.rank == 0:
                for sample in self.data.samples:
                    if sample.error:
                        self._unasked(sample, sample.error, writer)
            for batches in self._rounds(todo, writer, bar):
                for name, policy in self.policies.items():
                    for answers in self._turn(name, policy, batches):
                        writer.append(answers)
                        bar.update(len(answers))
        finally:
            writer.close()
            bar.close()

    def _share(self) -> list[list[Sample]]:
        """Return the batches to do, dealt out in turn; every process computes the same from the same records."""
        sound = [sample for sample in self.data.samples if sample.error is None]
        plan = self.asking.plan(sound, self.batch_size)
        todo = [batch for batch in plan if any(self._open(name, batch) for name in self.policies)]
        return todo[self.rank :: self.count]

    def _open(self, policy: str, samples: Sequence[Sample]) -> list[Sample]:
        return [sample for sample in samples if (policy, sample.id) not in self.done]

    def _rounds(self, todo: Iterable[Sequence[Sample]], writer: Writer, bar: tqdm[Any]) -> Iterator[list[Batch]]:
        """Yield prepared batches, made once for all policies; samples that cannot be prepared are recorded at once."""
        held: list[Batch] = []
        for samples in todo:
            for made in self.asking.prepare(samples):
                if isinstance(made, Batch):
                    held.append(made)
                else:
                    bar.update(self._unasked(*made, writer))
            if len(held) >= ROUND or sum(batch.bytes for batch in held) > HELD:
                yield held
                held = []
        if held:
            yield held

    def _unasked(self, sample: Sample, why: str, writer: Writer) -> int:
        names = [name for name in self.policies if (name, sample.id) not in self.done]
        writer.append(self.recorder.unasked(name, sample, why) for name in names)
        return len(names)

    def _turn(self, name: str, policy: Policy, batches: Sequence[Batch]) -> Iterator[list[Record]]:
        """Yield one policy's answers to a round of batches."""
        todo = [batch for whole in batches for batch in self._missing(name, whole)]
        if not todo:
            return
        memory = PeakMemory(input_device(self.asking.loaded.model))
        with optimized(self.asking.loaded.model, policy):
            memory.start()
            self._warm_up(todo[0])
            for batch in todo:
                yield from self._answers(name, batch, memory)

    def _missing(self, name: str, whole: Batch) -> Iterator[Batch]:
        left = self._open(name, whole.samples)
        if len(left) == len(whole.samples):
            yield whole
        elif left:  # a kill came between the parts of a batch that had to be halved
            yield from self._prepared(left)

    def _prepared(self, samples: Sequence[Sample]) -> Iterator[Batch]:
        return (made for made in self.asking.prepare(samples) if isinstance(made, Batch))

    def _warm_up(self, batch: Batch) -> None:
        try:
            generate(self.asking.loaded, batch, WARMUP)
        except Exception:
            return  # the call that counts meets the same, and records it

    def _answers(self, name: str, batch: Batch, memory: PeakMemory) -> Iterator[list[Record]]:
        """Yield the records of a batch; one that fails as a whole is halved until the culprit is alone.

        Raises:
            ValueError: too many failures in a row.
        """
        try:
            out = generate(self.asking.loaded, batch, batch.new_tokens)
        except Exception as error:  # out of memory, odd shapes: recorded with the sample that causes it
            why = f"{type(error).__name__}: {error}"
        else:
            self.failures[name] = 0
            yield self.recorder.answered(name, batch, out, self._peak(memory))
            return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch.samples) > 1:
            middle = len(batch.samples) // 2
            for half in (batch.samples[:middle], batch.samples[middle:]):
                for made in self._prepared(half):
                    yield from self._answers(name, made, memory)
            return
        yield [self.recorder.failed(name, batch.samples[0], why)]
        self.failures[name] = self.failures.get(name, 0) + 1
        if self.failures[name] == FAILURES:
            raise ValueError(
                f"policy {name} failed on {FAILURES} samples in a row, the last time with {why}. What was answered is "
                "saved; remove the cause, then run the same command with --retry-errors"
            )

    def _peak(self, memory: PeakMemory) -> int | None:
        """Return the peak; None over several devices, where no single counter sees all memory."""
        several = len(set(device_map(self.asking.loaded.model).values())) > 1
        return None if several else memory.stop()[0]
