"""The table of a run for a README."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .facts import Facts, Figure, Metric, milliseconds, number, probability

COLUMNS = 3  # metrics in the table


def markdown(facts: Facts, plots: Mapping[str, str]) -> str:
    """A heading, the table, what it was measured on, and links to the plots.

    Args:
        plots: path relative to the run directory -> what the picture shows.
    """
    summary, environment = facts.summary, facts.environment
    metrics = [metric for metric in facts.headlines if metric.name != "agreement"][:COLUMNS]
    head = ["policy", "tokens kept"]
    for metric in metrics:
        head += [f"{metric.title}{f', {metric.unit}' if metric.unit else ''} (95 %)", "vs. dense"]
    head += ["agrees with dense, %", "first token, ms", "times as fast", "errors"]
    rows = []
    for policy in facts.policies:
        one = summary["policies"][policy]
        kept, share, ttft = one["tokens"]["kept"], facts.kept_share(policy), one["latency"]["ttft_ms"]
        row = [f"`{policy}`", number(kept) + (f" ({number(share, 0)} %)" if share is not None else "")]
        for metric in metrics:
            row += [interval(facts.figure(policy, metric)), change(facts.difference(policy, metric), metric)]
        agreement = one["agreement_with_dense"]
        row += [
            number(100 * agreement["value"] if agreement else None),
            milliseconds(ttft["median"] if ttft else None),
            number(facts.speedup(policy), 2),
            str(one["errors"]),
        ]
        rows.append(row)
    lines = [f"### {cell(facts.title)}", ""]
    if not summary["complete"]:
        lines += ["**Not complete: some samples have no answer yet.**", ""]
    lines += [f"| {' | '.join(map(cell, head))} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += [f"| {' | '.join(map(cell, row))} |" for row in rows]
    lines += ["", f"{summary['samples']} samples, the same in every row, with 95 % bootstrap intervals over pictures. "]
    lines[-1] += "Bold: the 95 % interval of the difference from dense leaves out 0, and the paired test has p < 0.05. "
    lines[-1] += f"Latency: median over batches of up to {summary['batch_size']}"
    lines[-1] += f", {cell(environment['device'])}, {environment['model']['dtype']}." if environment else "."
    lines += ["", *(f"![{cell(shown)}]({Path(path).as_posix()})" for path, shown in plots.items())]
    return "\n".join(lines) + "\n"


def interval(figure: Figure | None) -> str:
    return f"{number(figure.value)} ({number(figure.low)} to {number(figure.high)})" if figure else "–"


def change(difference: Figure | None, metric: Metric) -> str:
    if difference is None:
        return "–"
    text = number(difference.value, sign=True)
    text = f"**{text}**" if difference.reading(metric.better) in ("better", "worse") else text
    return f"{text} ({probability(difference.p)})" if difference.p is not None else text


def cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
