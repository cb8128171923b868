"""The report of a search: one HTML file that needs nothing else, and its plot as PNG."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic import atomic_write
from ..evaluation.report.draw import Dot, Scene, png
from ..evaluation.report.html import Plot, around
from ..evaluation.report.palette import look
from ..evaluation.report.plots import DRAWING, NARROW, WIDE
from ..evaluation.report.templates import render
from ..evaluation.saved import saved
from .front import TITLES, Front, drawn
from .result import FORMAT
from .rules import DENSE
from .wanted import percent

AGAIN = "the search that wrote it, started again, writes it again and asks nothing twice"
SECTIONS = {
    "overview": "What came out",
    "cost": "Quality and cost",
    "categories": "Categories",
    "tried": "Everything that was tried",
    "setup": "How it was found",
}


def write_report(run: Path) -> Path:
    """Write report.html and plots/front.png into the directory of a search that came to its end.

    Returns:
        The path of report.html.

    Raises:
        ValueError: no tune.json there, or one of another version. OSError: something cannot be written.
    """
    path = run / "tune.json"
    if not path.exists():
        raise ValueError(f"{run} has no tune.json: give the directory of a finished search")
    facts = saved(path, dict, AGAIN)
    if facts.get("format") != FORMAT:
        raise ValueError(f"{path} has format {facts.get('format')}, this version reads {FORMAT}")
    others, environment = saved(run / "front.json", list, AGAIN), saved(run / "environment.json", dict, AGAIN)
    try:
        front = Front.of(facts, others)
        plot, text = png(drawn(front, facts["objective"], DRAWING)), page(facts, front, environment)
    except KeyError as error:
        raise ValueError(f"{path}, or a file beside it, is damaged (it lacks {error}): {AGAIN}") from error
    (run / "plots").mkdir(exist_ok=True)
    (run / "plots" / "front.png").write_bytes(plot)
    with atomic_write(run / "report.html") as fresh:
        fresh.write_text(text, encoding="utf-8")
    return run / "report.html"


def page(facts: Mapping[str, Any], front: Front, environment: Mapping[str, Any]) -> str:
    """Write the whole report."""
    objective = facts["objective"]
    return render(
        "tune.html",
        str(__package__),
        **around(SECTIONS, "script.js"),
        facts=facts,
        dense=DENSE,
        title=TITLES[objective],
        plots=[
            Plot(drawn(shown, objective, WIDE), drawn(shown, objective, NARROW)) for shown in (front, front.confirmed())
        ],
        signs={policy: sign(front, policy) for policy in front.policies},
        finalists=[one for one in facts["tried"] if one["holdout"]],
        tried=sorted(facts["tried"], key=standing),
        chips=chips(facts, environment),
        setup=setup(facts, environment),
    )


def sign(front: Front, policy: str) -> Scene:
    """Draw the marker of a policy in the plot."""
    ink, shape = look(front.style(policy))
    return Scene(16, 16, "", marks=[Dot(x=8, y=8, ink=ink, shape=shape)])


def standing(one: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a sort key: finalists first, then candidates with a cost, then by loss; those not asked come last."""
    seen, cost = one["selected_on"], one["cost"]
    return (
        one["holdout"] is None,
        cost is None,
        cost["ratio"] if cost else 0.0,
        seen is None,
        -seen["difference"] if seen else 0.0,
        one["policy"],
    )


def chips(facts: Mapping[str, Any], environment: Mapping[str, Any]) -> list[str]:
    images = facts["images"]
    return [
        f"{images['search']} images to search, {images['holdout']} to confirm",
        f"{len(facts['tried'])} candidates, {facts['answers']} answers",
        f"budget {facts['budget']:g} points at {percent(facts['confidence'])}",
        environment["model"]["dtype"],
        environment["device"],
        environment["date"][:10],
    ]


def setup(facts: Mapping[str, Any], environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is needed to run it again."""
    model = environment["model"]
    versions = {name: environment[name] for name in ("vlmopt", "python")} | environment["packages"]
    return [
        ("Model", f"{facts['model']} ({model['type']}, {model['parameters']:,} parameters, {model['dtype']})"),
        ("Data", f"{' '.join(facts['data'])} (digest {facts['digest']}, split {facts['split']})"),
        ("Marks", ", ".join(facts["marks"])),
        ("Device", f"{environment['device']}, threads: {environment['threads']}"),
        ("Processes", str(environment["processes"])),
        ("Versions", "; ".join(f"{name} {version}" for name, version in versions.items())),
        *((f"Start of {start['date']}", shlex.join(start["command"])) for start in environment["starts"]),
    ]
