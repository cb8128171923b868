"""What candidates cost: counted from their answers, or timed in rounds in which every one has its turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import fsum
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm

from ..api import optimized
from ..evaluation.data import Sample
from ..evaluation.generation import Output, generate, input_device
from ..evaluation.prompts import Asking, Batch
from ..evaluation.records import Record
from ..measure import PeakMemory, Spread
from ..policy import Policy
from .rules import DENSE, Cost

PROMPTS = 8  # batches, spread over lengths
ROUNDS = 7
COUNTED = ("tokens", "kv_bytes")  # objectives that need no timing
WARMUP = 2  # tokens that the unmeasured call generates after a policy is installed
SHORT = 2  # new tokens where only the first is timed

Answers = Mapping[tuple[str, str], Record]


def counted(answers: Answers, names: Sequence[str], objective: str) -> dict[str, Cost]:
    """Return costs that follow from the records of the samples that dense and a candidate both answered.

    tokens: visual tokens that a decoder layer sees on average. kv_bytes: keys and values of the prompts.
    """
    found = {}
    for name in names:
        both = [(own, answers[DENSE, sample]) for (policy, sample), own in answers.items() if policy == name]
        pairs = [(value(own, objective), value(dense, objective)) for own, dense in both]
        known = [(own, dense) for own, dense in pairs if own is not None and dense]
        found[name] = Cost.exact(fsum(own for own, _ in known) / fsum(dense for _, dense in known) if known else 1.0)
    return found


def value(record: Record, objective: str) -> float | None:
    if objective == "tokens":
        return None if record.tokens is None else record.tokens["layer_average"]
    return None if record.kv_bytes is None else record.kv_bytes / record.batch


def timed(
    asking: Asking, samples: Sequence[Sample], batch_size: int, policies: Mapping[str, Policy], objective: str,
    answers: Answers,
) -> tuple[dict[str, Cost], dict[str, str]]:  # fmt: skip
    """Measure policies, dense among them, in rounds; a cost is the median of its ratios to dense in the same round.

    Args:
        samples: from which prompts are taken. answers: dense ones among them say how long the prompts are.

    Returns:
        The costs, and why others could not be measured: a batch that was asked in halves may be too large for memory.

    Raises:
        ValueError: no prompt can be prepared, or nothing counts what the objective asks for.
    """
    batches = prompts(asking, samples, batch_size, answers)
    if objective == "ttft":
        batches = [replace(batch, new_tokens=min(batch.new_tokens, SHORT)) for batch in batches]
    loads = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if loads > (os.cpu_count() or 1) + 0.5:
        print(f"note: the load average is {loads:.1f}: other programs run, and times scatter")
    sums: dict[str, list[float]] = {name: [] for name in policies}
    failed: dict[str, str] = {}
    bar = tqdm(total=(ROUNDS + 1) * len(policies), desc="timing", unit="run")
    for turn in range(ROUNDS + 1):
        for name in [*sums]:
            try:
                with optimized(asking.loaded.model, policies[name]):
                    generate(asking.loaded, batches[0], WARMUP)
                    spent = MEASURES[objective](asking.loaded, batches)
            except Exception as error:  # said in `tune.json`; the others go on
                if name == DENSE:
                    raise
                failed[name] = f"{type(error).__name__}: {error}"
                del sums[name]
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            if turn:  # the first round warms up
                sums[name].append(spent)
            bar.update()
    bar.close()
    ratios = {name: [a / b for a, b in zip(own, sums[DENSE], strict=True)] for name, own in sums.items()}
    spreads = {name: Spread.of(own) for name, own in ratios.items() if name != DENSE}
    return {name: Cost(own.median, own.p20, own.p80) for name, own in spreads.items()}, failed


def prompts(asking: Asking, samples: Sequence[Sample], batch_size: int, answers: Answers) -> list[Batch]:
    """Return prepared batches, evenly spread from the shortest prompts to the longest."""

    def length(batch: Sequence[Sample]) -> float:
        known = [answers[DENSE, sample.id].tokens for sample in batch if (DENSE, sample.id) in answers]
        return fmean([0.0, *(tokens["prompt"] for tokens in known if tokens)])

    plan = sorted(asking.plan(samples, batch_size), key=length)
    if len(plan) > 1 and len(plan[0]) < batch_size:
        plan = [batch for batch in plan if len(batch) == batch_size] or plan  # as they are deployed
    count = min(PROMPTS, len(plan))
    chosen = [plan[(2 * number + 1) * len(plan) // (2 * count)] for number in range(count)]
    found = [made for batch in chosen for made in asking.prepare(batch) if isinstance(made, Batch)]
    if not found:
        raise ValueError("no prompt of the search part can be prepared, so nothing can be timed")
    return found


def outputs(loaded: Any, batches: Sequence[Batch]) -> list[Output]:
    return [generate(loaded, batch, batch.new_tokens) for batch in batches]


def first_token(loaded: Any, batches: Sequence[Batch]) -> float:
    return sum(out.report.ms["ttft"] or 0.0 for out in outputs(loaded, batches))


def whole(loaded: Any, batches: Sequence[Batch]) -> float:
    return sum(out.report.ms["total"] or 0.0 for out in outputs(loaded, batches))


def per_token(loaded: Any, batches: Sequence[Batch]) -> float:
    """Return milliseconds per new token of all samples, prompts included."""
    made = outputs(loaded, batches)
    return sum(out.report.ms["total"] or 0.0 for out in made) / sum(sum(out.lengths) for out in made)


def peak(loaded: Any, batches: Sequence[Batch]) -> float:
    """Return the largest peak of memory, weights included."""
    memory = PeakMemory(input_device(loaded.model))
    found = []
    for batch in batches:
        memory.start()
        generate(loaded, batch, batch.new_tokens)
        most, _, why = memory.stop()
        if most is None:
            raise ValueError(f"objective peak_memory cannot be measured here: {why}")
        found.append(most)
    return float(max(found))


MEASURES: dict[str, Callable[[Any, Sequence[Batch]], float]] = {
    "ttft": first_token, "total": whole, "throughput": per_token, "peak_memory": peak,
}  # fmt: skip
