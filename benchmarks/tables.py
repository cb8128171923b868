"""Write the tables of the documentation that are made of results: what stands between their marks in a page.

A page has `<!-- table: NAME -->`, the table, `<!-- end -->`. Under every table stands the machine that its newest row
was measured on.

    python benchmarks/tables.py            # say which pages are not what the results say
    python benchmarks/tables.py --write
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS

DOCS = Path(__file__).parents[1] / "docs"
MARKS = re.compile(r"<!-- table: ([\w-]+) -->\n(.*?)<!-- end -->", re.DOTALL)
MADE: dict[str, Callable[[], str]] = {}  # by name; the tables register themselves


def table(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register what makes a table."""

    def register(make: Callable[[], str]) -> Callable[[], str]:
        MADE[name] = make
        return make

    return register


def records(name: str) -> list[dict[str, Any]]:
    """Return the lines of results/<name>.jsonl, oldest first; none where nothing was measured."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def newest(name: str, **given: Any) -> dict[str, Any]:
    """Return the newest line in which fields have the given values.

    Raises:
        ValueError: there is none.
    """
    for line in reversed(records(name)):
        if all(line.get(key) == value for key, value in given.items()):
            return line
    raise ValueError(f"results/{name}.jsonl has no line with {given}; measure it first")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines) + "\n"


def measured_on(machine: dict[str, Any], also: str = "") -> str:
    """Write a machine as the line under a table."""
    vectors = f" with {machine['vectors']}" if "vectors" in machine else ""
    device = "an x86-64 CPU whose model was not noted" if machine["device"] == "x86_64" else machine["device"]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    parts = [f"{device}{vectors}", threads, f"torch {machine['torch']}", f"transformers {machine['transformers']}"]
    return f"\n*{', '.join(parts)}; {machine['date'][:10]}{'; ' * bool(also)}{also}.*\n"


def pages() -> Iterator[tuple[Path, str, str]]:
    """Yield every page with tables: where it lies, what it says and what it should say."""
    import gpu_tables  # noqa: F401  (these register themselves)
    import speed_tables  # noqa: F401

    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        made = MARKS.sub(lambda found: f"<!-- table: {found[1]} -->\n{MADE[found[1]]()}<!-- end -->", text)
        if MARKS.search(text):
            yield path, text, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the pages")
    options = parser.parse_args()
    stale = [(path, made) for path, text, made in pages() if text != made]
    for path, made in stale:
        if options.write:
            path.write_text(made, encoding="utf-8")
        print(f"{path.relative_to(DOCS.parent)} {'is written' if options.write else 'is not what the results say'}")
    sys.exit(bool(stale) and not options.write)


if __name__ == "__main__":
    sys.modules["tables"] = sys.modules["__main__"]  # the tables register with this module, not with a second one
    main()
