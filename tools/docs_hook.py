"""What MkDocs fills in: tables of settings and of presets, from the same data that the program reads.

`<!-- readme: HEADING -->` becomes that section of the README, `<!-- settings: NAME -->` a method's class, the table of
what is its own, and its docstring folded away, `<!-- shared settings: KIND -->` the table of what most methods of that
kind have, `<!-- presets -->` a section per preset. Links that leave `docs/` become links to the repository, and papers
links to arXiv. A Mermaid diagram becomes the SVG beside its page (`tools/page_diagram.py`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from vlmopt import catalogue
from vlmopt.methods import describe, find

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAPER = re.compile(r"\barXiv (\d{4}\.\d{4,5})\b")
LINK = re.compile(r"\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")
DIAGRAM = re.compile(r"^```mermaid\n.*?^```$", re.MULTILINE | re.DOTALL)
HEAD = ["| setting | default | range | what it does |", "|---|---|---|---|"]
FULL = """
??? info "`{name}` in full, as its docstring says it"

    ::: {path}
        options:
          show_root_heading: false
          show_root_toc_entry: false
          show_signature: false
          show_bases: false
          members: false
"""


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    markdown = re.sub(r"<!-- readme: (.+) -->", lambda found: readme(found[1]), markdown)
    markdown = re.sub(r"<!-- settings: (\w+) -->", lambda found: settings(found[1]), markdown)
    markdown = re.sub(r"<!-- shared settings: (\w+) -->", lambda found: table(shared(found[1]).values()), markdown)
    markdown = PAPER.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", markdown)
    markdown = markdown.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")  # one figure, one line of its cell
    here = PurePosixPath("docs", page.file.src_uri).parent
    markdown = DIAGRAM.sub(f"![The diagram of this page]({PurePosixPath(page.file.src_uri).stem}.svg)", markdown)
    markdown = LINK.sub(lambda found: outward(found, here, config["repo_url"]), markdown)
    return markdown.replace("<!-- presets -->", presets()) if "<!-- presets -->" in markdown else markdown


def on_post_page(output: str, **_: Any) -> str:
    """Leave out what would ask GitHub for the stars of the repository: a page asks no other host for anything."""
    return output.replace(' data-md-component="source"', "")


def readme(heading: str) -> str:
    """Return the text of a section of the README, its links as they are from a page in `docs/`."""
    text = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    if text is None:
        raise ValueError(f"the README has no section {heading!r}")
    return re.sub(r"\]\((?!https?:|#)(docs/)?", lambda found: "](" if found[1] else "](../", text[1]).strip()


def outward(link: re.Match[str], here: PurePosixPath, repository: str) -> str:
    """Turn a link to a file of the repository that is no page into its address there; leave all others."""
    path = (ROOT / here / link[1]).resolve().relative_to(ROOT)
    if path.parts[0] == "docs":
        return link[0]
    if not (ROOT / path).exists():
        raise FileNotFoundError(f"{here}: a link leads to {path}, which does not exist")
    return f"]({repository}/blob/main/{path.as_posix()}{link[2] or ''})"


@cache
def rows() -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in describe()}


@cache
def shared(kind: str) -> dict[str, dict[str, Any]]:
    """Return settings that more than half of a kind's methods have, each as most of them have it."""
    methods = [row for row in rows().values() if row["kind"] == kind]
    forms: dict[str, list[dict[str, Any]]] = {}
    for row in methods:
        for s in row["settings"]:
            forms.setdefault(s["name"], []).append(s)
    common = {}
    for name, found in forms.items():
        form, count = Counter(json.dumps(s, default=str) for s in found).most_common(1)[0]
        if 2 * count > len(methods):
            common[name] = next(s for s in found if json.dumps(s, default=str) == form)
    return common


def settings(name: str) -> str:
    """Write a method's class, the table of the settings that are its own or differ, and its docstring."""
    cls, row = find(name), rows()[name]
    own = [s for s in row["settings"] if not fixed(s) and s != shared(row["kind"]).get(s["name"])]
    parts = [
        f"`from {catalogue.KINDS[row['kind']]} import {cls.__name__}`",
        "",
        table(own) if own else "No settings of its own.",
    ]
    return "\n".join([*parts, FULL.format(name=cls.__name__, path=f"{cls.__module__}.{cls.__qualname__}")])


def fixed(s: dict[str, Any]) -> bool:
    """Tell a setting that has one value only, such as the layer of what acts before the LLM."""
    return len(s.get("choices", ())) == 1 or ("min" in s and s["min"] == s.get("max"))


def table(found: Any) -> str:
    lines = [f"| `{s['name']}` | {code(s['default'])} | {bounds(s)} | {cell(s.get('help', ''))} |" for s in found]
    return "\n".join(['<div class="settings" markdown>', "", *HEAD, *lines, "", "</div>"])


def bounds(s: dict[str, Any]) -> str:
    parts = [f"> {s['above']}"] if "above" in s else []
    parts += [f"≥ {s['min']}"] if "min" in s else []
    parts += [f"≤ {s['max']}"] if "max" in s else []
    parts += [", ".join(f"`{choice}`" for choice in s["choices"])] if "choices" in s else []
    return ", ".join(parts)


def code(value: Any) -> str:
    if value is None:
        return ""
    return f"`{value:.4g}`" if isinstance(value, float) else f"`{value}`"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def presets() -> str:
    """Write a section per group of presets, and in it a paragraph of facts per preset."""
    parts = []
    for group, title in catalogue.groups().items():
        parts.append(f"## {title}")
        for row in catalogue.presets().values():
            if row.group == group:
                mark = " (default)" if row.name == catalogue.default() else ""
                facts = {"Good for": row.goal, "Keeps": row.keeps, "Price": row.price, "Not for": row.avoid}
                lines = [f"- **{name}:** {text}" for name, text in facts.items() if text]
                parts.append("\n".join([f"### `{row.name}`{mark}", "", row.summary, "", *lines]))
    return "\n\n".join(parts)
