"""From predictions to capacity: what requests of a mix cost under each policy, and the devices that a rate needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from vlmopt.core import parse, shown

from ..paths import check_file
from .capacity import Capacity, Request, Step, needed
from .predict import CONTEXT, USABLE, described, estimate
from .result import Estimate, Prediction
from .source import Source
from .weights import Parts

TOGETHER = 64  # samples at the second of the two points that give the time of a step
BLOCK_BYTES = 2**20  # of a cache block: about 16 tokens of a 7 B model
KEYS = ("image", "images", "text", "new_tokens")
LINES = 10_000


def mix_of(path: str | Path) -> list[dict[str, Any]]:
    """Read a mix of requests, one JSON object a line: image ("WxH"), images, text, new_tokens, each of them optional.

    A line that occurs twice is twice as frequent.

    Raises:
        ValueError: a file that cannot be read, a line that is no such object, more than 10 000 lines.
    """
    try:
        text = check_file(path, "mix of requests").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not 1 <= len(lines) <= LINES:
        raise ValueError(f"{path} must hold 1 to {LINES} lines, got {len(lines)}")
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = parse(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if not isinstance(entry, dict) or set(entry) - set(KEYS):
            raise ValueError(f"{path}, line {number}: must be an object with {', '.join(KEYS)}, got {shown(entry)}")
        entries.append(entry)
    return entries


def capacities(
    model: str,
    rate: float,
    *,
    limit_s: float = 2.0,
    mix: Sequence[Mapping[str, Any]] = ({},),
    seed: int = 0,
    **prompt: Any,
) -> list[Capacity]:
    """Find how many devices serve `rate` requests per second, dense and under policies.

    Continuous batching on paper: `vlmopt.estimation.capacity`. Steps are launched as a whole (engine="graph").

    Args:
        rate: requests per second, all devices together.
        limit_s: seconds within which 95 % of the requests get their first token.
        mix: what a request may differ in from `prompt`, all entries equally frequent.
        prompt: further arguments of `estimate`.

    Raises:
        ValueError: as `estimate`; a limit that no idle device keeps, a request that no cache holds.
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"the rate must be > 0 and finite, in requests per second (--rps), got {shown(rate)}")
    if not 0 < limit_s < math.inf:
        raise ValueError(f"the limit must be > 0 and finite (--limit-ms), got {shown(limit_s)} seconds")
    parts = described(model)
    costs: dict[str, tuple[Estimate, Estimate]] = {}  # of every different entry
    for number, entry in enumerate(mix, 1):
        if repr(entry) not in costs:
            try:
                costs[repr(entry)] = priced(parts, {**prompt, **entry})
            except (TypeError, ValueError) as error:
                where = f"entry {number} of the mix, {shown(entry)}: " if entry else ""
                raise ValueError(f"{where}{error}") from error
    found = []
    for place, one in enumerate(costs[repr(mix[0])][0].predictions):
        pairs = [(alone.predictions[place], many.predictions[place]) for alone, many in (costs[repr(e)] for e in mix)]
        blocks = int((one.memory_bytes * USABLE - one.weights_bytes - CONTEXT) // BLOCK_BYTES)
        try:
            count, load = needed([kind(own) for own, _ in pairs], rate, steps(pairs), blocks, limit_s, seed=seed)
        except ValueError as error:
            raise ValueError(f"{one.policy} on {one.device}: {error}") from error
        found.append(Capacity(one.policy, one.device, rate, count, load, rate / count))
    return found


def priced(parts: tuple[Source, Parts], prompt: Mapping[str, Any]) -> tuple[Estimate, Estimate]:
    """Return the costs of one sample, and of `TOGETHER`."""
    one, many = (estimate(parts, **{**prompt, "engine": "graph", "batch": batch}) for batch in (1, TOGETHER))
    return one, many


def kind(one: Prediction) -> Request:
    """Make a request of a prediction for a single sample."""
    tokens = one.visual_tokens + one.text_tokens
    encode = (one.vision_ms + one.scoring_ms) / 1e3
    return Request(tokens, one.new_tokens, encode, one.prefill_ms / 1e3, math.ceil(one.kv_peak_bytes / BLOCK_BYTES))


def steps(pairs: Sequence[tuple[Prediction, Prediction]]) -> Step:
    """Return what a step costs, in the mean over all entries of a mix: launches nothing, and a line through two points.

    pairs: of every entry, the tokens of one sample and of `TOGETHER`.
    """
    each = fmean((many.token_ms - one.token_ms) / (TOGETHER - 1) for one, many in pairs)
    return Step(host=0.0, weights=(fmean(one.token_ms for one, _ in pairs) - each) / 1e3, each=each / 1e3)
