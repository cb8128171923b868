"""Which policies are tried: methods of the registries at several budgets, or what a file names."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmopt.core import parse, shown

from ..api import optimized
from ..methods import build
from ..offload import device_of
from ..paths import check_file
from ..policy import Policy
from ..prefill import MIN_LEN
from ..runtime.structure import structure_of

RATIOS = (0.75, 0.5, 0.33, 0.22, 0.15, 0.1)
# Cuts before the LLM: by content, by the question, by the tower's attention. The last three choose without looking.
BEFORE = ("div_prune", "cd_pruner", "zeroth_order", "cen_prune", "vis_pruner", "vision_zip")
CONTROLS = ("uniform", "random", "resize")
REDUNDANT = "pixel_redundancy"
SPARSE = (
    {"method": "min_p", "tau": 0.87}, {"method": "min_p", "tau": 0.95}, {"method": "x_attention"}, {"method": "grid"},
)  # fmt: skip
POINTS = 8  # values of settings that are given as a range
PRIMES = (2, 3, 5, 7, 11, 13)


@dataclass(frozen=True)
class Space:
    """What can be tried, and what cannot.

    Attributes:
        chains: names from gentle to harsh; losing at one budget implies losing below it.
        policies: by name.
        refused: name -> why it cannot work on this model.
    """

    chains: tuple[tuple[str, ...], ...]
    policies: Mapping[str, Policy]
    refused: Mapping[str, str]


def space(model: Any, base: Policy, longest: int, given: Sequence[Any] | None = None) -> Space:
    """Return what to try on a model.

    Args:
        base: methods that are part of every candidate.
        longest: prompt tokens of the longest prompt at hand: sparse prefill is for long ones.
        given: entries of a space file, in place of the usual candidates.

    Raises:
        ValueError: an entry that is none, or nothing that can work on this model.
    """
    chains = usual(len(structure_of(model).layers)) if given is None else chains_of(given)
    refused: dict[str, str] = {}
    if given is None:
        least = MIN_LEN.get(device_of(model).type, MIN_LEN["cuda"])
        if longest >= least:
            chains += [[[pattern]] for pattern in SPARSE]
        else:
            refused["sparse prefill"] = f"the longest prompt has {longest} tokens; below {least} nothing is left out"
    policies: dict[str, Policy] = {}
    fitting: list[tuple[str, ...]] = []
    for chain in chains:
        names = []
        for methods in chain:
            name = "+".join(line(method) for method in methods)
            if name in policies:  # of an entry before
                continue
            try:
                policy = merged(base, Policy.of([build(method) for method in methods]))
                with optimized(model, policy):
                    pass
            except (TypeError, ValueError) as error:
                refused[name] = str(error)
            else:
                names.append(name)
                policies[name] = policy
        if names:
            fitting.append(tuple(names))
    if not fitting:
        name, why = next(iter(refused.items()))
        raise ValueError(f"none of {len(refused)} candidates can work on this model; the first, {name}: {why}")
    return Space(tuple(fitting), policies, refused)


def usual(depth: int) -> list[list[list[dict[str, Any]]]]:
    """Return the chains that are tried where nothing else is said, each policy as its methods' dict forms."""
    chains = [[[{"method": name, "keep_ratio": ratio}] for ratio in RATIOS] for name in (*BEFORE, *CONTROLS)]
    quarters = sorted({max(1, depth * part // 4) for part in (1, 2, 3)})
    for layer in sorted({min(2, depth - 1), max(2, depth // 4)} - {0}):
        if layer < depth:
            chains.append([[{"method": "fastv", "keep_ratio": ratio, "layer": layer}] for ratio in RATIOS])
    for name in ("pyramid_drop", "sparse_vlm"):
        chains.append([[{"method": name, "keep_ratio": ratio, "layers": quarters}] for ratio in RATIOS])
    pixels: dict[str, Any] = {"method": REDUNDANT}
    chains.append([[pixels], *([pixels, {"method": "div_prune", "keep_ratio": ratio}] for ratio in RATIOS)])
    return chains


def chains_of(given: Sequence[Any]) -> list[list[list[dict[str, Any]]]]:
    """Return the chains of all entries of a space file, each policy as its methods' dict forms.

    Raises:
        ValueError: an entry that is none, or names what no method has; it is named by its place.
    """
    chains = []
    for number, entry in enumerate(given, 1):
        try:
            own = list(written(entry))
            for methods in itertools.chain.from_iterable(own):
                if Policy.of([build(method) for method in methods]) == Policy():
                    raise ValueError("it changes nothing; dense is what every candidate is compared with")
        except (TypeError, ValueError) as error:
            raise ValueError(f"entry {number} of the space, {shown(entry)}: {error}") from error
        chains += own
    return chains


def written(entry: Any) -> Iterator[list[list[dict[str, Any]]]]:
    """Yield the chains of an entry of a space file.

    An entry is a policy in any form that fits in JSON, or a method's dict form in which settings are lists of values or
    ranges {"min": a, "max": b}. A list of keep ratios makes a chain.

    Raises:
        TypeError, ValueError: neither.
    """
    if not isinstance(entry, Mapping) or "method" not in entry:
        policy = Policy.load(entry)
        if policy.seed or policy.gqa != "auto" or policy.read is not None:
            raise ValueError(f"{shown(entry)}: a candidate names methods alone; seed, gqa and read go into --base")
        told = policy.to_dict()
        sparse = [] if policy.prefill is None else [policy.prefill.to_dict()]
        if sparse and set(sparse[0]) != {"pattern"}:
            raise ValueError(f"{shown(entry)}: settings of sparse prefill beside its pattern go into --base")
        patterns = [one["pattern"] for one in sparse]
        evicted = [told["kv"]] if told["kv"] else []
        yield [[*told["prune"], *told["attention"], *patterns, *evicted, *told["decoding"]]]
        return
    fixed = {key: value for key, value in entry.items() if not varied(key, value)}
    ranges = {key: value for key, value in entry.items() if varied(key, value) and isinstance(value, Mapping)}
    lists = {key: value for key, value in entry.items() if varied(key, value) and key not in ranges}
    ratios = sorted(lists.pop("keep_ratio", []), reverse=True)
    for values in itertools.product(*lists.values()):
        for point in drawn(ranges) if ranges else [{}]:
            method = {**fixed, **dict(zip(lists, values, strict=True)), **point}
            yield [[{**method, "keep_ratio": ratio}] for ratio in ratios] if ratios else [[method]]


def varied(key: str, value: Any) -> bool:
    """Tell several values from one: a list of lists where one value is a list itself."""
    if isinstance(value, Mapping):
        return set(value) == {"min", "max"}
    several = isinstance(value, list) and bool(value)
    return several and (key not in ("layers", "ratios") or isinstance(value[0], list))


def drawn(ranges: Mapping[str, Mapping[str, float]]) -> list[dict[str, float]]:
    """Return `POINTS` points that fill the ranges evenly (Halton, 1960)."""
    if len(ranges) > len(PRIMES):
        raise ValueError(f"{len(ranges)} ranges in one entry: at most {len(PRIMES)}")
    for name, ends in ranges.items():
        if not all(type(end) in (int, float) for end in ends.values()) or not ends["min"] < ends["max"]:
            raise ValueError(f'{name} must be a range {{"min": a, "max": b}} of two numbers a < b, got {shown(ends)}')
    return [
        {
            name: round(ends["min"] + (ends["max"] - ends["min"]) * halton(number, prime), 6)
            for (name, ends), prime in zip(ranges.items(), PRIMES, strict=False)
        }
        for number in range(1, POINTS + 1)
    ]


def halton(number: int, prime: int) -> float:
    """Return the digits of a number to the base of a prime, behind the point and backwards."""
    value, unit = 0.0, 1.0
    while number:
        unit /= prime
        number, digit = divmod(number, prime)
        value += unit * digit
    return value


def line(method: Mapping[str, Any]) -> str:
    """Write a method as on a command line."""
    settings = ",".join(f"{key}={json.dumps(value)}" for key, value in method.items() if key != "method")
    name: str = method["method"]
    return f"{name}:{settings}".replace(" ", "") if settings else name


def merged(base: Policy, own: Policy) -> Policy:
    """Return a candidate with the base's methods beside its own."""
    prefill = own.prefill
    if prefill is not None and base.prefill is not None:
        prefill = replace(base.prefill, pattern=prefill.pattern, heads=None)
    return replace(
        base,
        prune=(*base.prune, *own.prune),
        attention=(*base.attention, *own.attention),
        prefill=prefill or base.prefill,
        kv=own.kv or base.kv,
        decoding=(*base.decoding, *own.decoding),
    )


def read(path: str | Path) -> list[Any]:
    """Read a space file: a JSON list.

    Raises:
        ValueError: it is none. OSError: it cannot be read.
    """
    try:
        entries = parse(check_file(path, "space file").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{path} must hold a list of candidates, e.g. ["balanced", {{"method": "uniform", ...}}]')
    return entries
