"""The nearest known name, for error messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

from .data import shown

Given = ParamSpec("Given")
Made = TypeVar("Made")

LONGEST = 100  # characters of a name that may be a slip of the pen


def near(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean 'uniform'?)" for a name that resembles a known one, in whatever case, or nothing."""
    known = {one.casefold(): one for one in names}
    close = get_close_matches(name.casefold(), known, n=2, cutoff=0.5) if len(name) <= LONGEST else []
    return f" (did you mean {' or '.join(repr(known[one]) for one in close)}?)" if close else ""


def unknown(what: str, name: object, names: Iterable[str]) -> str:
    """Return the message for a name of a kind of thing that is none of `names`."""
    names = list(names)
    return f"unknown {what} {shown(name)}{near(str(name), names)}; known: {', '.join(names)}"


def unknown_setting(owner: str, name: object, names: Sequence[str]) -> str:
    """Return the message for a setting that `owner` does not have."""
    return f"{owner}: unknown setting {shown(name)}{near(str(name), names)}; settings: {', '.join(names)}"


def hinting(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """Refuse arguments of unknown names by the nearest known one, as Python does itself from 3.13 on."""
    names = list(signature(function).parameters)

    @wraps(function)
    def call(*args: Given.args, **named: Given.kwargs) -> Made:
        for name in named:
            if name not in names:
                raise TypeError(
                    f"{function.__name__}: unknown argument {shown(name)}{near(name, names)}; "
                    f"arguments: {', '.join(names)}"
                )
        return function(*args, **named)

    return call
