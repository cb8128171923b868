"""`vlmopt eval`: policies compared on a data set, from the questions to a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SHOWN = ("accuracy", "f1", "yes_ratio", "anls", "judged", "chair_s", "chair_i", "chair_recall", "length")
PERCENT = frozenset(SHOWN) - {"length"}


def execute(options: argparse.Namespace) -> None:
    """Ask, sum up and report; or the last two alone."""
    if options.compare:
        first, second = map(Path, options.compare)
        compare(first, second, Path(options.out) if options.out else None)
        return
    if options.report:
        finish(Path(options.report), options.judge)
        return
    from ..evaluation.evaluate import evaluate  # with accelerate and transformers: not for every command

    try:
        run = evaluate(settings(options))
    except KeyboardInterrupt:
        print(f"interrupted: what was answered is saved in {options.out}; run the same command again to go on")
        raise
    if run is not None:
        finish(run, options.judge)


def settings(options: argparse.Namespace) -> Any:
    """Make `evaluation.evaluate.Settings` of the options."""
    from ..evaluation.evaluate import Settings
    from .source import source_of

    return Settings(
        model=options.model,
        source=source_of(options),
        policies=options.policy,
        sweep=options.sweep,
        ratios=options.ratios,
        device=options.device,
        device_map=options.device_map,
        dtype=options.dtype,
        batch_size=options.batch_size,
        prompt=options.prompt,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        parser=options.parser,
        units=options.points,
        maps=options.maps,
        retry_errors=options.retry_errors,
    )


def compare(first: Path, second: Path, out: Path | None) -> None:
    """Compare two runs, print the table, and write the report where one is asked for."""
    from ..evaluation.compare import compare_runs, save
    from ..evaluation.report.compared import Compared, table, write_comparison

    found = compare_runs(first, second)
    print(table(Compared(found)))
    if out is not None:
        save(found, out)
        print(f"wrote {write_comparison(found, out)}")


def finish(run: Path, command: str | None = None) -> None:
    """Have open answers judged where a command is given; sum up, print the figures and write the report."""
    from ..evaluation.judge import judge
    from ..evaluation.report import write_report
    from ..evaluation.summary import summarize

    if command is not None:
        print(f"judged {judge(run, command)} answers")
    summary = summarize(run)
    print(table(summary))
    print(f"{summary['samples']} samples about {summary['pictures']} images; 95 % intervals over images")
    print(f"wrote {write_report(run)}")


def table(summary: dict[str, Any]) -> str:
    """Write a line per policy: headline figures with the ends of their 95 % intervals, tokens, latency, errors."""
    policies = summary["policies"]
    names = [name for name in SHOWN if any(name in one["metrics"] for one in policies.values())]
    width = max(map(len, policies))
    lines = ["", f"{'policy':<{width}} {'n':>6} {'errors':>6} {'kept':>8} {'ttft ms':>8} {'KV KiB':>8} {'agrees':>7}"]
    lines[1] += "".join(f" {name:>20}" for name in names)
    for name, one in policies.items():
        kept, ttft, agrees = one["tokens"]["kept"], one["latency"]["ttft_ms"], one["agreement_with_dense"]
        size = one["latency"]["kv_bytes"]
        line = f"{name:<{width}} {one['n']:>6} {one['errors']:>6} {number(kept):>8}"
        line += f" {number(ttft and ttft['median']):>8} {number(size and size['median'] / 2**10):>8}"
        line += f" {number(agrees and 100 * agrees['value']):>7}"
        lines.append(line + "".join(f" {figure(metric, one['metrics'].get(metric)):>20}" for metric in names))
    if not summary["complete"]:
        lines.append("not complete: some samples have no answer yet")
    return "\n".join(lines)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def figure(metric: str, found: dict[str, float] | None) -> str:
    if found is None:
        return "-"
    scale = 100 if metric in PERCENT else 1
    return f"{scale * found['value']:.1f} ({scale * found['low']:.1f}-{scale * found['high']:.1f})"
