"""`vlmopt list`: presets and methods on one screen; with a name, everything about one of them."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

from .. import catalogue
from ..choices import SECTIONS
from ..core import near

WIDTH = 80  # columns
FIRM = "\N{NO-BREAK SPACE}"  # where no line may break
TITLES = {
    "selector": "Selectors",
    "correction": "Corrections",
    "pattern": "Patterns of sparse prefill",
    "eviction": "Evictions of keys after the prompt",
    "decoding": "Steps of decoding",
}


def execute(options: argparse.Namespace) -> None:
    print(as_json(options.what) if options.json else as_text(options.what))


def as_text(what: str | None) -> str:
    """Write what `vlmopt list` prints for people; only families and single methods need more than names."""
    if what is None:
        more = f"vlmopt list NAME: one in full; also {', '.join(SECTIONS)}"
        return "\n".join([*preset_lines(brief=True), "", *method_lines(), more])
    if what == "presets":
        return "\n".join(preset_lines())
    if what == "methods":
        return "\n".join(f"{entry['name']:<24} {entry['kind']:<11} {entry['summary']}" for entry in gathered("methods"))
    if what in SECTIONS:
        return "\n".join(line(entry) for entry in gathered(what))
    if (preset := catalogue.preset(what)) is not None:
        return preset_page(preset)
    return method_page(found(what))


def preset_lines(brief: bool = False) -> list[str]:
    """List every preset under its group's title; `brief` leaves the names of a group that has no measured price."""
    lines = [f"PRESETS (--policy NAME; default {catalogue.default()})"]
    for group, title in catalogue.groups().items():
        mine = [entry for entry in catalogue.presets().values() if entry.group == group]
        lines.append(f"  {title}")
        if brief and not any(entry.price for entry in mine):
            lines += wrapped(", ".join(entry.name for entry in mine), 4)
        else:
            lines += [f"    {entry.name:<15} {entry.summary}" for entry in mine]
    return lines


def method_lines() -> list[str]:
    """List the names of built-in methods, a paragraph per kind."""
    lines = ["METHODS (--policy NAME:SETTING=VALUE,...; joined by +)"]
    methods = catalogue.built_in()
    for kind, title in TITLES.items():
        names = ", ".join(entry.name for entry in methods if entry.kind == kind)
        lines += wrapped(names, 4, f"  {title}: ")
    return lines


def wrapped(text: str, indent: int, lead: str = "") -> list[str]:
    """Break a paragraph between words to a terminal's usual width; `lead` stands where the first is indented."""
    lines = textwrap.wrap(
        text, WIDTH, initial_indent=lead or " " * indent, subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return [line.replace(FIRM, " ") for line in lines]


def preset_page(preset: catalogue.Preset) -> str:
    facts = {
        "good for": preset.goal,
        "keeps": preset.keeps,
        "price": preset.price,
        "not for": preset.avoid,
        "once named": ", ".join(preset.was),
    }
    lines = [f"{preset.name}: {preset.summary}"]
    for key, text in facts.items():
        lines += wrapped(text, 13, f"  {key:<11}") if text else []
    return "\n".join([*lines, "", json.dumps(preset.policy, indent=2)])


def found(name: str) -> dict[str, Any]:
    """Return the entry of a method; refuse an unknown name and suggest what resembles it."""
    methods = catalogue.methods()
    if name not in methods:
        names = [*SECTIONS, *catalogue.presets(), *methods]
        hint = "see `vlmopt list`, and for models `vlmopt list families` and `vlmopt list checkpoints`"
        raise ValueError(f"no preset or method is called {name!r}{near(name, names)}; {hint}")
    entry: dict[str, Any] = next(entry for entry in gathered("methods") if entry["name"] == name)
    return entry


def method_page(entry: dict[str, Any]) -> str:
    """Write all that is known of a method: what it does, its paper, its settings with their bounds."""
    paper = f", arXiv {entry['paper']}" if entry["paper"] else ""
    lines = [f"{entry['name']} ({entry['kind']}, reads {entry['reads']}{paper})", *wrapped(entry["summary"], 2), ""]
    for s in entry["settings"]:
        bounds = [f">{FIRM}{s['above']}"] if "above" in s else []
        bounds += [f">={FIRM}{s['min']}"] if "min" in s else []
        bounds += [f"<={FIRM}{s['max']}"] if "max" in s else []
        bounds += [" | ".join(s["choices"])] if "choices" in s else []
        limits = f" [{f',{FIRM}'.join(bounds)}]" if bounds else ""
        default = "" if s["default"] is None else f" (default {s['default']})"
        lines += wrapped(f"{s.get('help', '')}{limits}{default}", 19, f"  {s['name']:<16} ")
    return "\n".join(lines)


def line(entry: Any) -> str:
    return f"{entry['name']:<20} {entry['example']}" if isinstance(entry, dict) else str(entry)


def gathered(section: str) -> list[Any]:
    """Collect the rows of a section; methods of other packages are loaded for it, and so is torch."""
    if section == "methods":
        from ..methods import describe

        return describe()
    if section == "families":
        from ..families import families

        return [{"name": f.name, "model_types": list(f.model_types), "example": f.example} for f in families().values()]
    if section == "checkpoints":
        from ..checkpoints import bundled

        return bundled()
    from ..policy.presets import presets

    rows = catalogue.presets()
    return [
        {"name": n, "group": rows[n].group, "summary": rows[n].summary, "policy": p.to_dict()}
        for n, p in presets().items()
    ]


def as_json(what: str | None) -> str:
    if what is None or what in SECTIONS:
        wanted = SECTIONS if what is None else (what,)
        return json.dumps({name: gathered(name) for name in wanted}, indent=2)
    preset = catalogue.preset(what)
    if preset is not None:
        return json.dumps(next(entry for entry in gathered("presets") if entry["name"] == preset.name), indent=2)
    return json.dumps(found(what), indent=2)
