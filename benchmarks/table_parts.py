"""What makers of tables share: results to read, a registry by name, and how a table is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from common import RESULTS

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


def points(difference: Iterable[float]) -> str:
    """Write a difference of shares and the ends of its interval in points."""
    value, low, high = (100 * end for end in difference)
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def paired(ends: Sequence[float]) -> str:
    """Write a paired difference (value, low, high) in points, bold where its interval leaves out zero."""
    if ends[1] == ends[2]:  # nothing differs, which a bootstrap takes for certainty
        return "same marks"
    text = points(ends)
    return f"**{text}**" if ends[1] > 0 or ends[2] < 0 else text


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
