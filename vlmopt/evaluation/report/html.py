"""The page: one file, no network, light and dark, readable without its script."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template

from ..figures import FEW
from .draw import Scene, svg
from .facts import AXES, Facts
from .gallery import gallery
from .markup import Markup, join, tag
from .palette import DARK, LIGHT, css
from .plots import NARROW, WIDE, stages, tradeoff
from .tables import categories, errors, everything, overview

SECTIONS = {
    "overview": "Overview",
    "cost": "Quality and cost",
    "time": "Where the time goes",
    "categories": "Categories",
    "figures": "All figures",
    "changed": "Changed answers",
    "errors": "Errors",
    "setup": "How it was measured",
}


def page(facts: Facts) -> str:
    """The whole report."""
    parts = {
        "overview": (overview(facts), READING),
        "cost": cost(facts),
        "time": time(facts),
        "categories": by_category(facts),
        "figures": (everything(facts),) if facts.metrics else (tag("p", "Nothing was marked."),),
        "changed": (gallery(facts),),
        "errors": (errors(facts),),
        "setup": setup(facts),
    }
    sections = [
        tag("section", tag("h2", title, id=f"{name}-title"), *parts[name], id=name, aria_labelledby=f"{name}-title")
        for name, title in SECTIONS.items()
    ]
    script = _file("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(_file("page.html")).substitute(
        # Even a text that slipped through unescaped could neither run nor call home.
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        title=join(f"{facts.title}: report"),
        style=theme() + _file("style.css"),
        script=script,
        header=header(facts),
        links=join(*(tag("a", title, href=f"#{name}") for name, title in SECTIONS.items())),
        body=join(*sections),
    )


def theme() -> str:
    """Colours as custom properties, for the system's theme and for one that was chosen on the page."""
    inks = "".join(f".f-{ink}{{fill:var(--{ink})}}.s-{ink}{{stroke:var(--{ink})}}" for ink in LIGHT)
    dark = css(DARK)
    return (
        f":root{{{css(LIGHT)}}}"
        f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
        f":root[data-theme=dark]{{{dark}}}{inks}\n"
    )


def header(facts: Facts) -> Markup:
    summary, environment = facts.summary, facts.environment
    told = [facts.asked, f"{len(facts.policies)} policies", summary["dtype"]]
    told += [environment["device"], environment["date"][:10]] if environment else []
    if not summary["complete"]:
        told.append("not complete")
    return join(
        tag("p", "vlmopt evaluation", css="kicker"),
        tag("h1", tag("span", summary["model"]), tag("small", " on "), " ".join(summary["data"])),
        tag("p", *(tag("span", text, css="chip") for text in told)),
        tag("p", "Not complete: some samples have no answer yet.", css="warning") if not summary["complete"] else None,
        *(tag("p", f"Note: {note}", css="warning") for note in summary["notes"]),
    )


READING = tag(
    "p",
    "Small figures below a value are its 95 % interval: bootstrap over pictures, or, where fewer than "
    f"{FEW} have a share in it or all are alike, Wilson's with pictures for trials (of lengths, Student's). Below a "
    "time stand its 20th and 80th percentile over batches. A change from dense is paired, on the same samples; it is "
    "called better or worse only "
    "where its 95 % interval leaves out zero and the paired test has p < 0.05. No clear difference is no proof that "
    "there is none: look at the interval.",
    css="note",
)


def cost(facts: Facts) -> Sequence[Markup]:
    """Plots of every headline metric, of which the page shows one against tokens and one against time."""
    metrics = facts.headlines
    if not metrics:
        return (tag("p", "Nothing was marked."),)
    plots = []
    for side in (AXES[:2], AXES[2:]):
        shown = []
        for metric in metrics:
            for axis in side:
                first = metric == metrics[0] and axis == side[0]
                drawn = (tradeoff(facts, metric, axis, size) for size in (WIDE, NARROW))
                shown.append(tag("div", *both(*drawn), data_metric=metric.name, data_axis=axis.name, hidden=not first))
        plots.append(tag("div", *shown, css="plot"))
    choices = [
        select("Metric", "metric", [(metric.name, metric.title) for metric in metrics]),
        select("Tokens", "axis-0", [(axis.name, axis.title) for axis in AXES[:2]]),
        select("Latency", "axis-1", [(axis.name, axis.title) for axis in AXES[2:]]),
    ]
    note = (
        "Bars are 95 % intervals, and across, the 20th to 80th percentile over batches. Filled markers lie on the "
        "Pareto front of this run (dashed): no other policy is both as cheap and as good. It is drawn through the "
        "values themselves; where intervals overlap, another run may draw it otherwise. Markers of the same cost stand "
        "side by side."
    )
    return tag("div", *choices, css="choices scripted"), tag("div", *plots, css="plots"), tag("p", note, css="note")


def select(label: str, name: str, options: Sequence[tuple[str, str]]) -> Markup:
    return tag(
        "label", label, tag("select", *(tag("option", title, value=value) for value, title in options), data_plot=name)
    )


def both(wide: Scene, narrow: Scene) -> tuple[Markup, Markup]:
    """The style sheet shows the one that fits, so that letters keep their size."""
    return svg(wide, css="wide"), svg(narrow, css="narrow")


def time(facts: Facts) -> Sequence[Markup]:
    plots = [
        tag("div", *both(*(stages(facts, whole=whole, width=size[0]) for size in (WIDE, NARROW))), css="plot")
        for whole in (False, True)
    ]
    size = facts.summary["batch_size"]
    note = (
        f"Medians over batches of up to {size}, each stage on its own; “other” is what they leave of the median of the "
        "whole: preparing inputs, sampling, Python. Warm-up calls are not counted."
    )
    return tag("div", *plots, css="plots"), tag("p", note, css="note")


def by_category(facts: Facts) -> Sequence[Markup]:
    tables = {metric: found for metric in facts.headlines if (found := categories(facts, metric))}
    if not tables:
        return (tag("p", "The data has no categories."),)
    shown = [
        tag("div", made, data_category_metric=metric.name, hidden=number > 0)
        for number, (metric, made) in enumerate(tables.items())
    ]
    if len(tables) == 1:
        return shown
    choice = select("Metric", "category", [(metric.name, metric.title) for metric in tables])
    return tag("div", choice, css="choices scripted"), *shown


def setup(facts: Facts) -> Sequence[Markup]:
    """Everything needed to run it again."""
    summary, environment = facts.summary, facts.environment
    rows: list[tuple[str, str]] = [
        ("Model", summary["model"]),
        ("Data", f"{' '.join(summary['data'])} ({summary['data_format']}, digest {summary['digest']})"),
        ("Samples", f"{summary['samples']}" + (f" (limit {summary['limit']})" if summary["limit"] else "")),
        ("Prompt", summary["prompt"]),
        ("Decoding", _pairs(summary["decoding"])),
        ("Answers are read by", _pairs(summary["parser"])),
        ("Batch size", str(summary["batch_size"])),
        ("Seed", str(summary["seed"])),
    ]
    if environment:
        model = environment["model"]
        rows += [
            ("Device", f"{environment['device']}, threads: {environment['threads']}"),
            ("Processes", str(environment["processes"])),
            ("Model type", f"{model['type']}, {model['parameters']:,} parameters, {model['dtype']}"),
            ("Attention", model["attention"]),
            ("Versions", _pairs({name: environment[name] for name in ("vlmopt", "python")} | environment["packages"])),
            ("Commit", environment["commit"] or "not known"),
            ("Platform", environment["platform"]),
        ]
        rows += [(f"Start of {start['date']}", shlex.join(start["command"])) for start in environment["starts"]]
    for name, one in summary["policies"].items():
        settings = {key: part for key, part in one["policy"].items() if key != "format"}
        rows.append((f"Policy {name}", json.dumps(settings, ensure_ascii=False)))
    return (tag("dl", *(join(tag("dt", name), tag("dd", text)) for name, text in rows)),)


def _pairs(facts: Mapping[str, object]) -> str:
    told = {name: f"({_pairs(part)})" if isinstance(part, Mapping) else part for name, part in facts.items()}
    return "; ".join(f"{name} {part}" for name, part in told.items() if part is not None)


def _file(name: str) -> str:
    return (files(__package__) / "page" / name).read_text(encoding="utf-8")
