"""Fill a page: a seed gives the names of its controls, its texts and its look. Pure text, no browser.

In a page, `{{word:style rest}}` is a place that `parts.Parts` fills (`style`: classes with dots between them),
`{{#3 6}} ... {{/}}` repeats what stands inside, filling it anew every time, and a first line `<!-- dark -->` or
`<!-- light -->` says that the page has but one theme.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .catalogue import base_style, template
from .look import look
from .names import allowed, assign
from .parts import CONTROLS, Call, Parts

PLACE = re.compile(r"\{\{\s*([#/]?)(\w*)(?::([\w.]+))?(?:\s+(.*?))?\s*\}\}")
THEME = re.compile(r"\A<!-- (light|dark) -->\n")
FIELDS = 4  # what `PLACE.split` yields for a place


@dataclass(frozen=True)
class Filled:
    """A document, and what was drawn for it: "light" or "dark", and the font's size in pixels."""

    html: str
    theme: str
    font_size: int


def fill(page: str, seed: int) -> Filled:
    """Fill a page; equal arguments give equal documents.

    Raises:
        ValueError: no such page, or a bad seed.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
    rng = random.Random(f"web/{page}/{seed}")
    text = template(page)
    only = THEME.match(text)
    drawn = look(rng, only[1] if only else None)
    tokens = _places(PLACE.split(text[only.end() if only else 0 :]))
    try:
        controls = [token[1] for token in tokens if not isinstance(token, str) and token[1].word in CONTROLS]
        names = assign([allowed(call.rest.partition("=")[0]) for call in controls], rng)
        body = _fill(iter(tokens), Parts(rng, drawn, names), rng)
    except ValueError as error:
        raise ValueError(f"{page}.html: {error}") from error
    head = f"<style>:root{{{drawn.style}}}\n{base_style()}</style>"
    document = f'<!doctype html><html lang="en"><head><meta charset="utf-8">{head}</head><body class="{drawn.classes}">'
    return Filled(f"{document}{body}</body></html>", drawn.theme, drawn.font_size)


Token = str | tuple[str, Call]


def _places(split: list[str]) -> list[Token]:
    """Split a page into plain text and places, in turn."""
    tokens: list[Token] = [split[0]]
    for at in range(1, len(split), FIELDS + 1):
        mark, word, style, rest, text = split[at : at + FIELDS + 1]
        tokens += [(mark, Call(word or "", (style or "").replace(".", " "), rest or "")), text]
    return tokens


def _fill(tokens: Iterator[Token], parts: Parts, rng: random.Random) -> str:
    done: list[str] = []
    for token in tokens:
        if isinstance(token, str):
            done.append(token)
        elif token[0] == "#":
            inside = _inside(tokens)
            low, _, high = (token[1].word + " " + token[1].rest).strip().partition(" ")
            count = rng.randint(int(low), int(high or low))
            done += (_fill(iter(inside), parts, rng) for _ in range(count))
        else:
            done.append(parts.fill(token[1]))
    return "".join(done)


def _inside(tokens: Iterator[Token]) -> list[Token]:
    """Return what stands before the end that belongs to a repetition just begun."""
    inside: list[Token] = []
    depth = 1
    for token in tokens:
        if not isinstance(token, str):
            depth += {"#": 1, "/": -1}.get(token[0], 0)
            if not depth:
                return inside
        inside.append(token)
    raise ValueError("a repetition {{#...}} is never ended by {{/}}")
