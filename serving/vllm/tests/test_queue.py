"""The queue of `vlmopt estimate --rps` is vLLM's: the same arrivals get their first tokens at the same times.

Time is what the simulation takes a step to last, so that nothing is left to compare but who has a turn when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vlmopt.estimation import capacity
from vlmopt.estimation.capacity import Request, Step, coming, serve

from .engines import Engine, end

TOKENS, SEATS = 256, 8  # of a step
READ = 0.001  # seconds of a token of a prompt
SHORT, LONG, HUGE = (
    Request(prompt=length, new_tokens=new, encode=0.0, prefill=READ * length, blocks=1)
    for length, new in ((40, 12), (150, 5), (700, 3))
)


STEP = Step(host=0.005, weights=0.015, each=0.001)


@pytest.fixture(scope="module")
def engine(checkpoints: Callable[[str], Path]) -> Iterator[Engine]:
    running = {
        "one": Engine(
            checkpoints("tiny_qwen"), "absent", max_num_batched_tokens=TOKENS, max_num_seqs=SEATS,
            enable_prefix_caching=False, async_scheduling=False,
        )
    }  # fmt: skip
    yield running["one"]
    end(running)


def served(engine: Engine, arrivals: list[tuple[float, Request]]) -> list[float]:
    """Let vLLM schedule them; seconds to the first token of each."""
    from vllm import SamplingParams

    core = engine.llm.llm_engine
    scheduler: Any = core.engine_core.engine_core.scheduler
    schedule, plans = scheduler.schedule, []

    def noted(*words: Any, **more: Any) -> Any:
        plans.append(schedule(*words, **more))
        return plans[-1]

    scheduler.schedule = noted
    now, left, firsts = 0.0, list(enumerate(arrivals)), {}
    try:
        while left or core.has_unfinished_requests():
            while left and left[0][1][0] <= now:
                number, (_, kind) = left.pop(0)
                params = SamplingParams(temperature=0, max_tokens=kind.new_tokens, ignore_eos=True)
                core.add_request(str(number), {"prompt_token_ids": [9 + number % 50] * int(kind.prompt)}, params)
            if not core.has_unfinished_requests():
                now = left[0][1][0]
                continue
            out = core.step()
            parts = {name.partition("-")[0]: tokens for name, tokens in plans[-1].num_scheduled_tokens.items()}
            reading = sum(tokens for name, tokens in parts.items() if name not in firsts)
            running = sum(name in firsts for name in parts)
            now += STEP.host + max(READ * reading, STEP.weights) + STEP.each * running
            for one in out:
                firsts.setdefault(one.request_id, now)
    finally:
        scheduler.schedule = schedule
    return [firsts[str(number)] - arrival for number, (arrival, _) in enumerate(arrivals)]


@pytest.mark.parametrize("rate", [2.0, 6.0, 30.0])
def test_requests_have_their_turns_as_in_an_engine(
    engine: Engine, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle, busy, and all at once: shared budgets, prompts in pieces, and seats that are taken."""
    monkeypatch.setattr(capacity, "BUDGET", TOKENS)
    monkeypatch.setattr(capacity, "RUNNING", SEATS)
    arrivals = coming([SHORT, SHORT, LONG, HUGE], rate, 60, seed=1)
    assert served(engine, arrivals) == pytest.approx(serve(arrivals, STEP, 10**6)[0], abs=1e-6)
