"""How many devices a stream of requests needs: continuous batching, simulated event by event on one of them.

Requests arrive at random (Poisson) and are routed at random, so each of G devices sees a Poisson stream of rate / G and
one stands for all: thousands of devices cost no more than one. A device works in steps, as serving engines do: a step
takes waiting prompts up to a budget of tokens, in pieces if need be, and one token of every running sample; a sample
waits until the cache has blocks for all that it will write. Prompts and tokens of a step go through the weights
together, which are read once.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from vlmopt.core import shown

BUDGET = 8192  # tokens in one step, of prompts and of samples that run
RUNNING = 256  # samples at once
REQUESTS = 1500  # requests of a simulation; the first fifth fills the device and does not count
MOST = 1_000_000  # devices


@dataclass(frozen=True)
class Request:
    """What one kind of request costs on an empty device; seconds."""

    prompt: float  # tokens of the prompt, as a mean over the layers, behind all cuts
    new_tokens: int
    encode: float  # tower and choosing
    prefill: float
    blocks: int  # of the cache, when its last token is written


@dataclass(frozen=True)
class Load:
    """Figures of one simulation; seconds."""

    ttft_p50: float
    ttft_p95: float
    requests_per_s: float
    busy: float  # share of the time in which the device works


@dataclass(frozen=True)
class Capacity:
    """Devices that a rate needs, and what each of them then sees."""

    policy: str
    device: str
    rate: float  # requests per second, all devices together
    devices: int
    load: Load
    each: float  # requests per second that one of them serves; of a single device no more is known than the rate

    def __str__(self) -> str:
        return (
            f"{self.policy}: {self.devices} x {self.device} for {self.rate:g} requests/s; time to the first token "
            f"{1e3 * self.load.ttft_p50:.0f} ms (p50), {1e3 * self.load.ttft_p95:.0f} ms (p95); each serves "
            f"{self.each:.2f} requests/s"
        )


@dataclass(frozen=True)
class Step:
    """What a step costs beside its prompts; seconds."""

    host: float  # to schedule and launch it
    weights: float  # to read them; a prompt that is read meanwhile and takes no longer costs nothing
    each: float  # of every running sample


def simulate(
    kinds: Sequence[Request], rate: float, step: Step, blocks: int, *, seed: int = 0, requests: int = REQUESTS
) -> Load:
    """Serve `requests` random requests of `kinds` at `rate` per second on one device.

    Args:
        step: what generated tokens cost. blocks: of the cache that fit.

    Raises:
        ValueError: a rate that is not positive, or a kind that the cache can never hold.
    """
    if not rate > 0:
        raise ValueError(f"rate must be > 0 requests per second, got {shown(rate)}")
    largest = max(kind.blocks for kind in kinds)
    if largest > blocks:
        raise ValueError(f"one request needs {largest} cache blocks and {max(blocks, 0)} fit: the device is too small")
    waits, elapsed, busy = serve(coming(kinds, rate, requests, seed), step, blocks)
    counted = sorted(waits[requests // 5 :])
    return Load(quantile(counted, 0.5), quantile(counted, 0.95), requests / elapsed, busy / elapsed)


def coming(kinds: Sequence[Request], rate: float, requests: int, seed: int) -> list[tuple[float, Request]]:
    """Draw when requests arrive, in seconds, and of which kinds they are."""
    draw, now = random.Random(seed), 0.0
    arrivals = []
    for _ in range(requests):
        now += draw.expovariate(rate)
        arrivals.append((now, draw.choice(kinds)))
    return arrivals


@dataclass
class Waiting:
    """A request whose prompt is not read to its end."""

    arrival: float
    kind: Request
    left: float = 1.0  # share of the prompt


@dataclass
class Running:
    """A sample that is generated."""

    left: int  # tokens
    blocks: int


def serve(requests: Sequence[tuple[float, Request]], step: Step, free: int) -> tuple[list[float], float, float]:
    """Run the steps of one device until every request is answered.

    Args:
        requests: (arrival, what it costs), by rising arrival. free: blocks of the cache.

    Returns:
        Seconds: to the first token of every request, from the first arrival to the last answer, and of work.
    """
    left = deque(requests)
    waiting: deque[Waiting] = deque()
    running: list[Running] = []
    waits: list[float] = []
    now = busy = 0.0
    while left or waiting or running:
        while left and left[0][0] <= now:
            waiting.append(Waiting(*left.popleft()))
        if not waiting and not running:
            now = left[0][0]
            continue
        encoding, reading, done, free = read(waiting, len(running), free)
        seconds = step.host + encoding + max(reading, step.weights) + step.each * len(running)
        now, busy = now + seconds, busy + seconds
        for sample in running:
            sample.left -= 1
        running += [Running(one.kind.new_tokens - 1, one.kind.blocks) for one in done]
        waits += [now - one.arrival for one in done]
        free += sum(sample.blocks for sample in running if sample.left <= 0)
        running = [sample for sample in running if sample.left > 0]
    return waits, now - requests[0][0], busy


def read(waiting: deque[Waiting], running: int, free: int) -> tuple[float, float, list[Waiting], int]:
    """Read prompts for one step; samples that run take their token of the budget first.

    Returns:
        Seconds of towers and of prompts, the requests whose prompt ends in this step, and the blocks left free.
    """
    budget, encoding, reading = float(BUDGET - running), 0.0, 0.0
    done: list[Waiting] = []
    while waiting and budget > 0 and running + len(done) < RUNNING:
        head = waiting[0]
        if head.left == 1.0:
            if head.kind.blocks > free:
                break
            free -= head.kind.blocks
            encoding += head.kind.encode
        share = min(head.left, budget / max(head.kind.prompt, 1))
        reading += share * head.kind.prefill
        budget -= share * head.kind.prompt
        head.left -= share
        if head.left > 1e-9:
            break
        done.append(waiting.popleft())
    return encoding, reading, done, free


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def needed(
    kinds: Sequence[Request], rate: float, step: Step, blocks: int, limit: float, *, seed: int = 0
) -> tuple[int, Load]:
    """Return the fewest devices that keep the p95 of the time to first token within `limit` seconds, and their load.

    More devices never make it worse: the number is found by bisection.

    Raises:
        ValueError: even an idle device is too slow for the limit.
    """

    def load(devices: int) -> Load:
        return simulate(kinds, rate / devices, step, blocks, seed=seed)

    alone = max(kind.encode + kind.prefill for kind in kinds)
    if alone > limit:
        raise ValueError(
            f"a first token takes {1e3 * alone:.3g} ms on an idle device, more than the limit of {1e3 * limit:.3g} ms"
        )
    low, high = 0, 1
    while load(high).ttft_p95 > limit:
        low, high = high, high * 2
        if high > MOST:
            raise ValueError(f"more than {MOST} devices would be needed for {rate:g} requests per second")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if load(middle).ttft_p95 <= limit else (middle, high)
    return high, load(high)
