"""The report as a page: one file, no network, light and dark, readable without its script. Its markup is in page/."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from ..figures import FEW
from ..records import DENSE, Record
from .curves import costs, look_of
from .draw import DASH, Dot, Scene
from .facts import AXES, Axis, Facts, Figure, Metric
from .gallery import gallery
from .palette import DARK, LIGHT, css
from .plots import NARROW, WIDE, stages
from .templates import ready, render

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
ERRORS = 200  # rows of the table of errors
SIDES = (AXES[:2], AXES[2:])  # the plot on the left shows one of these, the plot on the right one of those


class Plot(NamedTuple):
    """A drawing in two widths, and what the page's script chooses it by."""

    wide: Scene
    narrow: Scene
    metric: str = ""
    axis: str = ""


def page(facts: Facts) -> str:
    """Write the whole report."""
    return render(
        "page.html",
        **around(SECTIONS, "script.js", "tables.js", "gallery.js"),
        facts=facts,
        dense=DENSE,
        few=FEW,
        chips=chips(facts),
        signs={policy: sign(facts, policy) for policy in facts.policies},
        axes=AXES,
        costs=[[cost(facts, metric, axis) for metric in facts.headlines for axis in side] for side in SIDES],
        times=[time(facts, whole) for whole in (False, True)],
        by_category={metric.name: rows for metric in facts.headlines if (rows := categories(facts, metric))},
        splits=splits(facts),
        changed=gallery(facts),
        failed=failed(facts),
        most_errors=ERRORS,
        setup=setup(facts),
    )


def around(sections: Mapping[str, str], *scripts: str) -> dict[str, Any]:
    """Return what base.html puts around the sections of a report."""
    script = Markup("").join(ready(name) for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        # Even a text that slipped through unescaped could neither run nor call home.
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "style": theme() + ready("style.css"),
        "script": script,
        "sections": sections,
        "dash": DASH,
    }


def chips(facts: Facts) -> list[str]:
    summary, environment = facts.summary, facts.environment
    told = [facts.asked, f"{len(facts.policies)} policies", summary["dtype"]]
    told += [environment["device"], environment["date"][:10]] if environment else []
    return told if summary["complete"] else [*told, "not complete"]


def sign(facts: Facts, policy: str) -> Scene:
    """Draw the marker of a policy in the plots."""
    ink, shape, control = look_of(facts, policy)
    return Scene(16, 16, "", marks=[Dot(x=8, y=8, ink=ink, shape=shape, hollow=control)])


def cost(facts: Facts, metric: Metric, axis: Axis) -> Plot:
    wide, narrow = (costs(facts, metric, axis, size) for size in (WIDE, NARROW))
    return Plot(wide, narrow, metric.name, axis.name)


def time(facts: Facts, whole: bool) -> Plot:
    wide, narrow = (stages(facts, whole=whole, width=size[0]) for size in (WIDE, NARROW))
    return Plot(wide, narrow)


def categories(facts: Facts, metric: Metric) -> dict[str, Figure]:
    """Return the figure of every category that has most samples: its numbers of samples and images head the row."""
    found = {name: [facts.figure(policy, metric, name) for policy in facts.policies] for name in facts.categories}
    return {name: max((one for one in row if one), key=lambda one: one.n) for name, row in found.items() if any(row)}


def splits(facts: Facts) -> dict[str, list[float | None]]:
    """Return the means of the splits in percent, by title; one value per policy."""
    own = [facts.summary["policies"][policy]["mean_of_splits"] or {} for policy in facts.policies]
    names = dict.fromkeys(name for means in own for name in means)
    return {
        f"Mean of the splits: {name.replace('_', ' ')}, %": [100 * m[name] if name in m else None for m in own]
        for name in names
    }


def failed(facts: Facts) -> list[Record] | None:
    """Return the records without an answer, of the policies of the summary; None where none failed."""
    records = [record for record in facts.records if record.error]
    return [record for record in records if record.policy in facts.policies] if records else None


def theme() -> Markup:
    """Return the colours as custom properties, for the system's theme and for one that was chosen on the page."""
    inks = "".join(f".f-{ink}{{fill:var(--{ink})}}.s-{ink}{{stroke:var(--{ink})}}" for ink in LIGHT)
    dark = css(DARK)
    return Markup(
        f":root{{{css(LIGHT)}}}"
        f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
        f":root[data-theme=dark]{{{dark}}}{inks}\n"
    )


def setup(facts: Facts) -> Sequence[tuple[str, str]]:
    """Return everything that is needed to run it again."""
    summary, environment = facts.summary, facts.environment
    rows: list[tuple[str, str]] = [
        ("Model", summary["model"]),
        ("Data", f"{' '.join(summary['data'])} ({summary['data_format']}, digest {summary['digest']})"),
        ("Samples", f"{summary['samples']}" + (f" (limit {summary['limit']})" if summary["limit"] else "")),
        ("Prompt", summary["prompt"]),
        ("Decoding", _pairs(summary["decoding"])),
        ("Answers are read by", _pairs(summary["parser"])),
        *([("Judge of open answers", summary["judge"])] if summary.get("judge") else []),
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
    return rows


def _pairs(facts: Mapping[str, object]) -> str:
    told = {name: f"({_pairs(part)})" if isinstance(part, Mapping) else part for name, part in facts.items()}
    return "; ".join(f"{name} {part}" for name, part in told.items() if part is not None)
