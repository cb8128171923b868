"""What MkDocs fills in: tables of settings and of presets, from the same data that the program reads.

`<!-- settings: NAME -->` becomes the table of a method's settings, `<!-- presets -->` the table of presets.
"""

from __future__ import annotations

import re
from typing import Any

from vlmopt import catalogue
from vlmopt.methods import describe


def on_page_markdown(markdown: str, **_: Any) -> str:
    markdown = re.sub(r"<!-- settings: (\w+) -->", lambda found: settings(found[1]), markdown)
    return markdown.replace("<!-- presets -->", presets())


def settings(name: str) -> str:
    """Write the table of a method's settings that are its own; those that all of its kind share come once."""
    rows = {row["name"]: row for row in describe()}
    row = rows[name]
    shared = set.intersection(*({s["name"] for s in r["settings"]} for r in rows.values() if r["kind"] == row["kind"]))
    own = [s for s in row["settings"] if s["name"] not in shared]
    if not own:
        return "*No settings of its own.*"
    lines = ["| setting | default | range | what it does |", "|---|---|---|---|"]
    lines += [f"| `{s['name']}` | {code(s['default'])} | {bounds(s)} | {cell(s.get('help', ''))} |" for s in own]
    return "\n".join(lines)


def bounds(s: dict[str, Any]) -> str:
    parts = [f"> {s['above']}"] if "above" in s else []
    parts += [f"≥ {s['min']}"] if "min" in s else []
    parts += [f"≤ {s['max']}"] if "max" in s else []
    parts += [", ".join(f"`{choice}`" for choice in s["choices"])] if "choices" in s else []
    return ", ".join(parts)


def code(value: Any) -> str:
    return "" if value is None else f"`{value}`"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def presets() -> str:
    """Write a table per group of presets."""
    parts = []
    for group, title in catalogue.groups().items():
        lines = [
            f"## {title}",
            "",
            "| preset | what it does | good for | keeps | price | not for |",
            "|---|---|---|---|---|---|",
        ]
        for row in catalogue.presets().values():
            if row.group == group:
                mark = " (default)" if row.name == catalogue.default() else ""
                words = (row.summary, row.goal, row.keeps, row.price, row.avoid)
                lines.append(f"| `{row.name}`{mark} | {' | '.join(map(cell, words))} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
