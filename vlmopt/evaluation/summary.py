"""summary.json: the figures of a run, from its records alone.

format, complete, samples, model, dtype, data, data_format, digest, decoding, prompt, parser, seed, limit,
batch_size, notes
pictures    how many images the samples are about
judge       the command that marked open answers, or null
lines       of a sweep: policy -> [line, ratio]
primary     the headline metric; `less` and `neutral` name those of which less, or nothing, is better
policies    name -> {
    policy          as JSON
    n, errors       records, and those of them with an error
    metrics         metric -> {value, low, high, n, pictures, interval}; 95 % intervals over images, with their names
    by_category     category or group -> {n, errors, metrics, versus_dense}
    mean_of_splits  of yes/no questions in several categories: the mean of each figure of POPE
    versus_dense    metric -> {difference, low, high, p, p_holm, n}; p_holm is adjusted for the policies of the run
                    (Holm), in every category anew; empty for dense
    agreement_with_dense   as a metric
    latency         {ttft_ms, decode_ms, prefill_ms, vision_ms, scoring_ms, total_ms, decode_tokens_per_s:
                    {median, p20, p80} or null; kv_bytes (a sample's share), peak_memory_bytes, calls, batch}: of whole
                    batches
    tokens          {prompt, visual, kept, layer_average, new}: means over samples
}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from ..atomic import atomic_write
from ..measure import Spread
from ..metrics import mean_of_splits, pope_scores
from ..metrics.paired import holm
from .figures import LESS, NEUTRAL, PRIMARY, figures
from .judge import load as judged
from .judge import with_scores
from .records import DENSE, FORMAT, Record, read
from .request import load_request

STAGES = ("vision", "scoring", "prefill", "ttft", "decode", "total")


def summarize(run: Path) -> dict[str, Any]:
    """Compute the figures of a run directory, finished or not, and write summary.json.

    Raises:
        ValueError: no run directory.
    """
    request = load_request(run)
    by_policy: dict[str, list[Record]] = {name: [] for name in request["policies"]}
    judged_by, scores = judged(run)
    for record in with_scores(read(run), scores):
        by_policy[record.policy].append(record)
    for records in by_policy.values():
        records.sort(key=lambda record: record.index)
    if not by_policy[DENSE]:
        raise ValueError(f"{run} holds no answers yet: start the run again")
    dense = {record.id: record for record in by_policy[DENSE]}
    policies = {
        name: summary_of(records, dense, request["seed"]) | {"policy": request["policies"][name]}
        for name, records in by_policy.items()
        if records
    }
    adjust([one["versus_dense"] for one in policies.values()])
    for group in {name for one in policies.values() for name in one["by_category"]}:
        adjust([one["by_category"].get(group, {}).get("versus_dense", {}) for one in policies.values()])
    metrics = {name for one in policies.values() for name in one["metrics"]}
    summary = {
        "format": FORMAT,
        "complete": all(len(records) == request["samples"] for records in by_policy.values()),
        **{name: value for name, value in request.items() if name not in ("format", "policies")},
        "judge": judged_by,
        "pictures": len({record.picture for record in by_policy[DENSE]}),
        "primary": next((name for name in PRIMARY if name in metrics), None),
        "less": sorted(metrics & LESS),
        "neutral": sorted(metrics & NEUTRAL),
        "policies": policies,
    }
    with atomic_write(run / "summary.json") as fresh:
        fresh.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


def summary_of(records: Sequence[Record], dense: Mapping[str, Record], seed: int) -> dict[str, Any]:
    """Return the entry of one policy."""
    values, differences = figures(records, dense, seed=seed)
    agreement = values.pop("agreement", None)
    groups: dict[str, list[Record]] = {}
    for record in records:
        for name in dict.fromkeys((record.category, *record.extra.get("groups", ()))):
            groups.setdefault(name, []).append(record)
    by_category = {}
    for name, members in groups.items():
        if name:
            own, versus = figures(members, dense, seed=seed)
            own.pop("agreement", None)
            by_category[name] = {**counts(members), "metrics": own, "versus_dense": versus}
    return {
        **counts(records),
        "metrics": values,
        "by_category": by_category,
        "mean_of_splits": pope_mean(records),
        "versus_dense": differences,
        "agreement_with_dense": agreement,
        "latency": latency(records),
        "tokens": tokens(records),
    }


def adjust(tables: Sequence[dict[str, dict[str, Any]]]) -> None:
    """Add p_holm to every difference: metric by metric, over the policies, whose tables these are."""
    for metric in {name for table in tables for name in table}:
        found = [table[metric] for table in tables if metric in table]
        for one, p in zip(found, holm([one["p"] for one in found]), strict=True):
            one["p_holm"] = p


def counts(records: Sequence[Record]) -> dict[str, int]:
    return {"n": len(records), "errors": sum(record.error is not None for record in records)}


def pope_mean(records: Sequence[Record]) -> dict[str, float] | None:
    """Return the mean of POPE's figures over the splits; None where there is one category or none."""
    splits: dict[str, list[Record]] = {}
    for record in records:
        if record.kind == "yes_no" and record.correct is not None:
            splits.setdefault(record.category, []).append(record)
    if len(splits) < 2:
        return None
    scores = {
        name: pope_scores([r.answer == "yes" for r in rows], [r.metrics["yes"] for r in rows])
        for name, rows in splits.items()
    }
    return {name: value for name, value in asdict(mean_of_splits(scores)).items() if name != "unparsable"}


def latency(records: Sequence[Record]) -> dict[str, Any]:
    """Return medians over batches: every batch counts once, however many samples it had."""
    calls = {record.call: record for record in records if record.ms is not None}.values()

    def spread(values: Sequence[float | None]) -> dict[str, float] | None:
        known = [value for value in values if value is not None]
        return Spread.of(known).to_dict() if known else None

    peaks = [record.memory_bytes for record in records if record.memory_bytes is not None]
    return {
        **{f"{stage}_ms": spread([call.ms.get(stage) if call.ms else None for call in calls]) for stage in STAGES},
        "decode_tokens_per_s": spread([call.decode_tokens_per_s for call in calls]),
        "kv_bytes": spread([None if call.kv_bytes is None else call.kv_bytes / call.batch for call in calls]),
        "peak_memory_bytes": max(peaks, default=None),
        "calls": len(calls),
        "batch": max((call.batch for call in calls), default=0),
    }


def tokens(records: Sequence[Record]) -> dict[str, float | None]:
    known = [record.tokens for record in records if record.tokens]
    new = [record.new_tokens for record in records if record.new_tokens is not None]
    means = {name: fmean(one[name] for one in known) if known else None for name in ("prompt", "visual", "kept")}
    average = fmean(one["layer_average"] for one in known) if known else None
    return {**means, "layer_average": average, "new": fmean(new) if new else None}
