"""Is the queue of `vlmopt estimate --rps` that of a serving engine? Times to the first token, simulated and served.

vLLM serves random requests at three rates, dense and under a policy, a small random model in this process. The
simulation is handed the very same arrivals, and what single steps took: of one prompt, of four, and of a token of 1 to
16 samples.

Time is the engine's own: it advances by the CPU time of each step, of one thread, and jumps to the next arrival where
nothing is to do, so that other programs do not count. Images are read by the processor before, as a server does beside
its engine. Runs in the environment of vlmopt-vllm:

    OMP_NUM_THREADS=1 python benchmarks/capacity.py
    python benchmarks/tables.py --write             # the table of docs/estimate.md
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from common import append
from serving import UNIFORM, asked, engine, image, random_model
from vlmopt.estimation.capacity import RUNNING, Request, Step, coming, quantile, serve

SIDE = 224  # 256 cells
NEW = 8  # tokens of every answer
TOGETHER = (1, 4, 16)  # samples whose tokens are measured
MANY = 4  # prompts
TURNS, ALIKE = 2, 3  # of single steps, and how many alike in a turn
BLOCKS = 10**6  # of a cache that holds all
SHARES = (0.3, 0.6, 0.9)  # of the requests that the simulated engine answers at most
SMALL = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
POLICIES: dict[str, Any] = {"dense": None, "uniform 25 %": UNIFORM}


class Served:
    """An engine, and one kind of request that it is asked."""

    def __init__(self, llm: Any, policy: Any) -> None:
        self.core, self.policy, self.rng, self.asked = llm.llm_engine, policy, np.random.default_rng(0), 0

    def add(self, tokens: int = NEW) -> str:
        """Put one request into the queue, with other pixels than any before."""
        from vllm import SamplingParams

        self.asked += 1
        prompt = asked("image", image(self.rng, SIDE), mm_processor_kwargs={"vlmopt": self.policy})
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        self.core.add_request(str(self.asked), prompt, params)
        return str(self.asked)

    def step(self) -> tuple[float, list[Any]]:
        """Run one step: its CPU seconds, and what it put out."""
        began = time.process_time()
        found = self.core.step()
        return time.process_time() - began, found

    def waits(self, arrivals: Sequence[float]) -> list[float]:
        """Serve requests that arrive at these times; seconds to the first token of each."""
        now, came, firsts = 0.0, {}, {}
        left = list(reversed(arrivals))
        while left or self.core.has_unfinished_requests():
            while left and left[-1] <= now:
                came[self.add()] = left.pop()
            if not self.core.has_unfinished_requests():
                now = left[-1]
                continue
            seconds, found = self.step()
            now += seconds
            for out in found:
                firsts.setdefault(out.request_id, now)
        return [firsts[name] - arrival for name, arrival in came.items()]

    def together(self, count: int, tokens: int) -> tuple[float, int]:
        """Read prompts in one step: its CPU seconds, and the tokens of a prompt."""
        for _ in range(count):
            self.add(tokens)
        seconds, found = self.step()
        return seconds, len(found[0].prompt_token_ids)

    def single_steps(self) -> tuple[Request, Step]:
        """Measure steps of one prompt, of several, and of a token of so many samples."""
        prompts: dict[int, list[float]] = {1: [], MANY: []}
        tokens: dict[int, list[float]] = {count: [] for count in TOGETHER}
        length = 0
        for _ in range(TURNS):
            for _ in range(ALIKE):
                for count, seen in prompts.items():
                    seconds, length = self.together(count, 1)
                    seen.append(seconds)
            for count, seen in tokens.items():
                self.together(count, ALIKE + 1)
                seen += [self.step()[0] for _ in range(ALIKE)]
        one, many = (statistics.median(seen) for seen in prompts.values())
        each, fixed = np.polyfit(TOGETHER, [statistics.median(seen) for seen in tokens.values()], 1)
        saved = (MANY * one - many) / (MANY - 1)  # by every prompt that shares a step
        host = min(max(saved, 0.0), float(fixed))
        return Request(length, NEW, 0.0, one - host, 1), Step(host, float(fixed) - host, float(each))


def rows_of(name: str, served: Served, requests: int) -> list[dict[str, Any]]:
    """Compare the simulation with what was served at every rate; single steps are measured anew before each."""
    rows: list[dict[str, Any]] = []
    highest = 0.0
    for share in SHARES:
        kind, step = served.single_steps()
        if not rows:
            highest = 4 * RUNNING / serve([(0.0, kind)] * (4 * RUNNING), step, BLOCKS)[1]
        arrivals = coming([kind], share * highest, requests, seed=round(100 * share))
        waits = {
            "served": served.waits([arrival for arrival, _ in arrivals]),
            "simulated": serve(arrivals, step, BLOCKS)[0],
        }
        row: dict[str, Any] = {
            "policy": name, "share": share, "rate": share * highest, "prompt_tokens": kind.prompt,
            "prompt_s": kind.prefill, **asdict(step),
        }  # fmt: skip
        for how, seconds in waits.items():
            counted = sorted(seconds[requests // 5 :])
            row |= {f"p50_{how}": quantile(counted, 0.5), f"p95_{how}": quantile(counted, 0.95)}
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=120, help="of every rate; the first fifth does not count")
    options = parser.parse_args()
    # vLLM's own switches: a small cache on a CPU, the engine in this process and thread.
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_LOGGING_LEVEL="ERROR",
    )  # fmt: skip
    from vllm import __version__

    facts = argparse.Namespace(model="random", video=False)
    llm = engine(facts, random_model(**SMALL), mm_processor_kwargs={"vlmopt": None}, async_scheduling=False)
    rows = [row for name, policy in POLICIES.items() for row in rows_of(name, Served(llm, policy), options.requests)]
    found = {"vllm": __version__, "requests": options.requests, "new_tokens": NEW, "rows": rows}
    print(f"appended to {append('capacity', found)}")


if __name__ == "__main__":
    main()
