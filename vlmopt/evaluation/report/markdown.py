"""The table of a run for a README; page/report.md has the words around it."""

from __future__ import annotations

import re

from ..figures import FEW
from .exports import drawings
from .facts import Facts, Figure, Metric
from .numbers import milliseconds, number, probability
from .templates import render

COLUMNS = 3  # metrics in the table


def markdown(facts: Facts) -> str:
    """Write a heading, the table, what it was measured on, and links to the plots."""
    plots = {f"plots/{name}.png": scene.title for name, scene in drawings(facts).items()}
    head, rows = rows_of(facts)
    return render("report.md", facts=facts, head=head, rows=rows, few=FEW, plots=plots, plain=plain)


def rows_of(facts: Facts) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table, as Markdown."""
    metrics = [metric for metric in facts.headlines if metric.name != "agreement"][:COLUMNS]
    head = ["policy", "tokens kept"]
    for metric in metrics:
        head += [f"{metric.full} (95 %)", "vs. dense"]
    head += ["agrees with dense, %", "first token, ms", "times as fast", "errors"]
    rows = []
    for policy in facts.policies:
        one = facts.summary["policies"][policy]
        kept, share, ttft = one["tokens"]["kept"], facts.kept_share(policy), one["latency"]["ttft_ms"]
        row = [code(policy), number(kept) + (f" ({number(share, 0)} %)" if share is not None else "")]
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
    return [cell(text) for text in head], [[cell(text) for text in row] for row in rows]


def interval(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    return f"{number(figure.value)} ({figure.ends})" if figure.ends else number(figure.value)


def change(difference: Figure | None, metric: Metric) -> str:
    if difference is None:
        return "–"
    text = number(difference.value, sign=True)
    text = f"**{text}**" if difference.reading(metric.better) in ("better", "worse") else text
    return f"{text} ({probability(difference.p)})" if difference.p is not None else text


def code(text: str) -> str:
    """Write a name as code, in a fence longer than any in it, so that nothing ends it early."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{line(text)}{pad}{fence}"


def plain(text: str) -> str:
    """Write untrusted text as Markdown that shows it letter by letter: nothing in it is markup, HTML or a link."""
    return re.sub(r"[^\w\s.,;:%()/–-]|_|:(?=//)|(?<=www)\.", lambda sign: f"&#{ord(sign[0])};", line(text))


def line(text: str) -> str:
    return " ".join(text.split())


def cell(text: str) -> str:
    """Escape ready Markdown for a cell of a table."""
    return text.replace("|", "\\|")
