"""The report of two runs side by side: a page, and a table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...atomic import atomic_write
from ..figures import FEW
from .draw import Dot, Scene
from .facts import TITLES, Figure, Metric, figure_of, metric_of
from .html import around
from .markdown import cell, change, code, interval, plain
from .numbers import milliseconds, number
from .palette import look
from .templates import render

SECTIONS = {"overview": "Overview", "figures": "All figures", "categories": "Categories", "setup": "The runs"}


@dataclass(frozen=True)
class Compared:
    """What `compare.compare_runs` returned, as a report sees it; sides are 0 and 1."""

    facts: Mapping[str, Any]

    @property
    def policies(self) -> list[str]:
        return list(self.facts["policies"])

    @property
    def title(self) -> str:
        return " and ".join(run["run"] for run in self.facts["runs"])

    @property
    def metrics(self) -> list[Metric]:
        """Everything that both runs measured; the headline first."""
        found = {name for one in self.facts["policies"].values() for name in one["difference"]}
        known = [*(name for name in TITLES if name in found), *sorted(found - set(TITLES))]
        first = self.facts["primary"]
        return [metric_of(name, self.facts) for name in sorted(known, key=lambda name: name != first)]

    @property
    def categories(self) -> list[str]:
        return list(dict.fromkeys(name for one in self.facts["policies"].values() for name in one["by_category"]))

    def figure(self, policy: str, metric: Metric, side: int, category: str | None = None) -> Figure | None:
        found = self._part(policy, category).get("metrics", ({}, {}))[side].get(metric.name)
        return None if found is None else figure_of(found, "value", metric)

    def difference(self, policy: str, metric: Metric, category: str | None = None) -> Figure | None:
        """Return how much more the second run has."""
        found = self._part(policy, category).get("difference", {}).get(metric.name)
        return None if found is None else figure_of(found, "difference", metric)

    def agreement(self, policy: str) -> Figure | None:
        found = self.facts["policies"][policy]["agreement"]
        return None if found is None else figure_of(found, "value", metric_of("agreement", self.facts))

    def _part(self, policy: str, category: str | None) -> Mapping[str, Any]:
        one: Mapping[str, Any] = self.facts["policies"][policy]
        return one if category is None else one["by_category"].get(category, {})


def write_comparison(facts: Mapping[str, Any], directory: Path) -> Path:
    """Write compare.html and compare.md into a directory that exists.

    Returns:
        The path of compare.html.
    """
    shown = Compared(facts)
    page = render(
        "compare.html",
        **around(SECTIONS, "script.js", "tables.js"),
        shown=shown,
        few=FEW,
        setup=setup(facts),
        signs={policy: sign(number) for number, policy in enumerate(shown.policies)},
    )
    for name, text in (("compare.md", table(shown)), ("compare.html", page)):
        with atomic_write(directory / name) as fresh:
            fresh.write_text(text, encoding="utf-8")
    return directory / "compare.html"


def table(shown: Compared) -> str:
    """Write the headline metric of both runs, and what else they cost, as Markdown."""
    metrics = shown.metrics[:1]
    head = ["policy", *(f"{metric.full}: {side}" for metric in metrics for side in ("first", "second", "change"))]
    head += ["same answer, %", "first token, ms"]
    rows = []
    for policy in shown.policies:
        row = [code(policy)]
        for metric in metrics:
            row += [interval(shown.figure(policy, metric, side)) for side in (0, 1)]
            row.append(change(shown.difference(policy, metric), metric))
        agreement, spreads = shown.agreement(policy), shown.facts["policies"][policy]["latency"]
        times = [milliseconds(one["ttft_ms"]["median"] if one["ttft_ms"] else None) for one in spreads]
        rows.append([*row, number(agreement.value if agreement else None), " → ".join(times)])
    cells = [[cell(text) for text in row] for row in (head, *rows)]
    return render("compare.md", shown=shown, head=cells[0], rows=cells[1:], few=FEW, plain=plain)


def sign(style: int) -> Scene:
    ink, shape = look(style)
    return Scene(16, 16, "", marks=[Dot(x=8, y=8, ink=ink, shape=shape)])


def setup(facts: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """Return what each run was, then what was left out."""
    rows = []
    for name, run in zip(("First", "Second"), facts["runs"], strict=True):
        versions = "; ".join(f"{package} {found}" for package, found in run["versions"].items() if found)
        told = (run["run"], run["model"], run["dtype"], " ".join(run["data"]), run["device"], versions, run["commit"])
        rows.append((name, "\n".join(filter(None, told))))
    rows += [(f"Left out: {why}", f"{count} samples") for why, count in facts["left_out"].items()]
    return rows
