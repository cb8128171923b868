"""Record who has looked at a hold-out: the promise holds for the first look alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..atomic import atomic_write
from ..evaluation.saved import saved
from .result import dumped
from .search import Search

NAME = "looks.json"


def looked(search: Search) -> None:
    """Note that the hold-out is about to be looked at."""
    now = {
        "split": search.parts.digest,
        "budget": search.wanted.budget,
        "objective": search.wanted.objective,
        "confidence": search.wanted.confidence,
    }
    known = looks(search.settings.source.run)
    if now not in known:
        with atomic_write(search.settings.source.run / NAME) as fresh:
            fresh.write_text(dumped([*known, now]), encoding="utf-8")


def looks(run: Path) -> list[dict[str, Any]]:
    """Return the searches that looked at the hold-out of a directory, in order.

    Raises:
        ValueError: the file that says so is damaged.
    """
    known: list[dict[str, Any]] = saved(run / NAME, list, "what was looked at is lost, choose another --out")
    return known


def looked_before(search: Search) -> list[str]:
    """Say for which earlier searches the hold-out was looked at."""
    before = looks(search.settings.source.run)[:-1]
    if not before:
        return []
    said = ", ".join(f"budget {look['budget']:g} for {look['objective']}" for look in before)
    return [f"this hold-out was looked at before ({said}): the confidence is that of the first look"]
