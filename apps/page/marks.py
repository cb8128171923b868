"""How an answer is marked against the dense one: by what the task asks for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vlmopt.analysis.click import REACH, click_agreement
from vlmopt.analysis.sweep import agreement
from vlmopt.metrics.answers import anls, exact
from vlmopt.metrics.clicks import Point

Ids = Sequence[int]


class Mark(NamedTuple):
    """A way of marking: its name, a sentence about it, and the mark itself, 0 to 1, of an answer and the dense one."""

    name: str
    about: str
    agree: Callable[[Ids, Ids], float]


def mark_of(
    task: str,
    size: tuple[int, int],
    dense: Point | None,
    click: Callable[[Ids], Point | None],
    said: Callable[[Ids], str],
) -> Mark:
    """Return the way of marking for a task.

    Args:
        size: (width, height) of the image. dense: where the dense answer clicks, in its pixels; None for nowhere.
        click: where an answer clicks. said: an answer as text.
    """
    if task == "click" and dense is not None:

        def by_pixels(ids: Ids, _: Ids) -> float:
            found = click(ids)
            return 0.0 if found is None else click_agreement(found, dense, size)

        about = f"1 for a click on the dense one's pixel, falling to 0 at {REACH:.0%} of the image's diagonal."
        return Mark("pixels between the clicks", about, by_pixels)
    if task == "answer" and importlib.util.find_spec("rapidfuzz"):
        about = "Likeness of the letters of both answers (ANLS): 1 for the same, 0 where less than half is alike."
        return Mark("ANLS", about, lambda ids, wanted: anls(said(ids), [said(wanted)]))
    if task == "answer":
        about = "1 for the same answer, small letters and full stops aside, else 0."
        return Mark("exact match", about, lambda ids, wanted: float(exact(said(ids), [said(wanted)])))
    return Mark("tokens in order", "Share of the tokens of both answers that match in order.", agreement)
