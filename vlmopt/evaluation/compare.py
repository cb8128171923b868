"""Two runs side by side, of two models or two versions: paired on the samples that both were asked alike.

compare.json
format, runs       two of {run, model, dtype, data, prompt, digest, device}; the second is compared with the first
samples, pictures  samples that agree, and the images that they are about
left_out           why -> how many samples are not compared
primary, less, neutral   as in summary.json
policies           name -> {same_settings, n, metrics: [of the first, of the second], by_category: category -> the same
                   without latency, difference: metric -> {difference, low, high, p, p_holm, n}, agreement,
                   latency: [..], tokens: [..]}; for policies that both runs have
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic import atomic_write
from .figures import LESS, NEUTRAL, PRIMARY, agreements, differences, figures
from .records import FORMAT, Record, read
from .request import load_request
from .saved import saved_environment
from .summary import adjust, latency, tokens

ONLY = ("only in the first run", "only in the second run")
OTHERWISE = "asked or marked otherwise"
TOLD = ("model", "dtype", "data", "prompt", "digest", "batch_size")


def compare_runs(first: Path, second: Path) -> dict[str, Any]:
    """Compare two run directories, policy by policy.

    Samples agree where id, question as put, kind, right answer and box are the same; others are counted and left out.

    Raises:
        ValueError: no run directories, no policy that both have, or no sample that agrees.
    """
    requests = [load_request(run) for run in (first, second)]
    tables = [by_policy(run) for run in (first, second)]
    names = [name for name in tables[0] if name in tables[1]]
    if not names:
        raise ValueError(
            f"{first} and {second} have no policy in common: {', '.join(tables[0])}; {', '.join(tables[1])}"
        )
    alike, left_out = agreeing(*(table[names[0]] for table in tables))
    if not alike:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise ValueError(
            f"{first} and {second} have no sample in common ({why}): give runs on the same data and prompt"
        )
    policies = {}
    for name in names:
        before, after = ([table[name][key] for key in alike if key in table[name]] for table in tables)
        settings = [request["policies"][name] for request in requests]
        policies[name] = {
            "same_settings": settings[0] == settings[1],
            **paired(before, after, requests[0]["seed"]),
            "by_category": by_category(before, after, requests[0]["seed"]),
            "latency": [latency(before), latency(after)],
            "tokens": [tokens(before), tokens(after)],
        }
    adjust([one["difference"] for one in policies.values()])
    for group in {name for one in policies.values() for name in one["by_category"]}:
        adjust([one["by_category"][group]["difference"] for one in policies.values() if group in one["by_category"]])
    metrics = {name for one in policies.values() for name in one["difference"]}
    return {
        "format": FORMAT,
        "runs": [about(run, request) for run, request in zip((first, second), requests, strict=True)],
        "samples": len(alike),
        "pictures": len({tables[0][names[0]][key].picture for key in alike}),
        "left_out": left_out,
        "primary": next((name for name in PRIMARY if name in metrics), None),
        "less": sorted(metrics & LESS),
        "neutral": sorted(metrics & NEUTRAL),
        "policies": policies,
    }


def by_policy(run: Path) -> dict[str, dict[str, Record]]:
    """Return policy -> id -> record, in the order of the data."""
    found: dict[str, dict[str, Record]] = {}
    for record in sorted(read(run), key=lambda record: record.index):
        found.setdefault(record.policy, {})[record.id] = record
    return found


def agreeing(first: Mapping[str, Record], second: Mapping[str, Record]) -> tuple[list[str], dict[str, int]]:
    """Return the ids that mean the same in both, and how many do not, by reason."""
    alike, left_out = [], Counter[str]()
    for name in dict.fromkeys((*first, *second)):
        if name not in first or name not in second:
            left_out[ONLY[name not in first]] += 1
        elif asked(first[name]) != asked(second[name]):
            left_out[OTHERWISE] += 1
        else:
            alike.append(name)
    return alike, dict(left_out)


def asked(record: Record) -> tuple[Any, ...]:
    return record.question, record.kind, record.answer, record.extra.get("box"), record.extra.get("objects")


def paired(first: Sequence[Record], second: Sequence[Record], seed: int) -> dict[str, Any]:
    """Return the figures of both, on these samples, and the differences of the second from the first."""
    base = {record.id: record for record in first}
    return {
        "n": sum(record.id in base for record in second),
        "metrics": [figures(records, {}, seed=seed)[0] if records else {} for records in (first, second)],
        "difference": differences(second, base, seed=seed),
        "agreement": agreements(second, base, seed=seed),
    }


def by_category(first: Sequence[Record], second: Sequence[Record], seed: int) -> dict[str, Any]:
    """Return `paired` of every category that both have."""
    groups: dict[str, tuple[list[Record], list[Record]]] = {}
    for side, records in enumerate((first, second)):
        for record in records:
            if record.category:
                groups.setdefault(record.category, ([], []))[side].append(record)
    return {name: paired(*both, seed) for name, both in groups.items() if all(both)}


def about(run: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    environment = saved_environment(run)
    versions = {"vlmopt": environment.get("vlmopt"), **environment.get("packages", {})}
    return {
        "run": str(run),
        **{name: request.get(name) for name in TOLD},
        "device": environment.get("device"),
        "commit": environment.get("commit"),
        "versions": {name: versions.get(name) for name in ("vlmopt", "torch", "transformers")},
    }


def save(comparison: Mapping[str, Any], directory: Path) -> Path:
    """Write compare.json; return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "compare.json"
    with atomic_write(path) as fresh:
        fresh.write_text(json.dumps(comparison, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
