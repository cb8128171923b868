"""The table of a run for a paper, with the rules of booktabs."""

from __future__ import annotations

import re

from ..figures import FEW
from ..records import DENSE
from .facts import LEVEL, Facts, Figure, Metric
from .numbers import number
from .templates import render

COLUMNS = 3  # metrics in a table of single policies
SIGNS = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "−": "$-$",
    "×": r"$\times$", "“": "``", "”": "''", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}  # fmt: skip


def latex(facts: Facts) -> str:
    """Write a table environment: of a sweep, a row per method and a column per ratio; else a row per policy."""
    metrics = [metric for metric in facts.headlines if metric.name != "agreement"] or facts.headlines
    head, rows = swept(facts, metrics[0]) if facts.lines and metrics else single(facts, metrics[:COLUMNS])
    title = f"{metrics[0].full} of {facts.title}" if facts.lines and metrics else facts.title
    return render("report.tex", facts=facts, title=title, head=head, rows=rows, few=FEW, level=LEVEL, tex=tex)


def swept(facts: Facts, metric: Metric) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: what stays in every column, dense in a row of its own."""
    told = facts.summary["lines"]
    ratios = sorted({ratio for _, ratio in told.values()})
    rows = [[DENSE, f"\\multicolumn{{{len(ratios)}}}{{c}}{{{cell(facts.figure(DENSE, metric))}}}"]]
    for line, policies in facts.lines.items():
        at = {told[policy][1]: policy for policy in policies if policy in told}
        if at:
            rows.append([tex(line), *(reading(facts, at[ratio], metric) if ratio in at else "--" for ratio in ratios)])
    return ["Method", *(f"{100 * ratio:g}\\,\\%" for ratio in ratios)], rows


def single(facts: Facts, metrics: list[Metric]) -> tuple[list[str], list[list[str]]]:
    head = ["Policy", r"Tokens, \%", *(tex(metric.full) for metric in metrics), "First token, ms"]
    rows = []
    for policy in facts.policies:
        one = facts.summary["policies"][policy]
        tokens, ttft = one["tokens"], one["latency"]["ttft_ms"]
        share = 100 * tokens["layer_average"] / tokens["visual"] if tokens["visual"] else None
        row = [tex(policy), number(share), *(reading(facts, policy, metric) for metric in metrics)]
        rows.append([*row, number(ttft["median"] if ttft else None)])
    return head, [[text.replace("–", "--") for text in row] for row in rows]


def reading(facts: Facts, policy: str, metric: Metric) -> str:
    """Return a figure with its interval, and a dagger where it clearly differs from dense."""
    difference = facts.difference(policy, metric)
    clear = difference is not None and difference.reading(metric.better) in ("better", "worse")
    return cell(facts.figure(policy, metric)) + (r"$^\dagger$" if clear else "")


def cell(figure: Figure | None) -> str:
    if figure is None:
        return "--"
    ends = f" {{\\scriptsize [{number(figure.low)}, {number(figure.high)}]}}" if figure.ends else ""
    return f"{number(figure.value)}{ends}".replace("−", "$-$")


def tex(text: str) -> str:
    """Write untrusted text so that LaTeX shows it letter by letter."""
    return re.sub(r"[\\~^–−×“”<>|&%$#_{}]", lambda sign: SIGNS[sign[0]], " ".join(text.split()))
