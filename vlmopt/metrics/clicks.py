"""Where an answer points: coordinates from text, in the units that models use, and whether they hit a box."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from ..choices import UNITS
from .stated import concluded, unwrapped

Point = tuple[float, float]
Size = tuple[int, int]  # width, height
Box = tuple[float, float, float, float]  # x0, y0, x1, y1
WHOLE = {"unit": 1, "hundred": 100, "thousand": 1000, "thousand-yx": 1000, "loc": 1024}
DOWN_FIRST = "-yx"  # units of models that say y before x

NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:\s*(?:%|px))?"
GAP = r"\s*(?:[,;\s]|\band\b)\s*"
PAIR = rf"({NUMBER})\s*[,;\s]\s*({NUMBER})"
QUOTE = r"[\"']?"


def _named(*names: str) -> str:
    """Return the pattern of numbers after their names, `x=1, y=2` or `"x": 1, "y": 2`."""
    each = (rf"{QUOTE}\b(?:{name}){QUOTE}\s*(?:[=:]|is\b)\s*{QUOTE}({NUMBER}){QUOTE}" for name in names)
    return GAP.join(each)


def _corner(down: str, across: str) -> str:
    return rf"\b(?:{down})[-\s]?{across}\b[^\d()\[\]]*[(\[]?\s*{PAIR}\s*[)\]]?"


LOC = r"<loc(\d{4})>\s*"
LEAD = "at|on|is|are|to|the|point|position|location|pixel|coordinates?"
FORMS = {  # what the numbers are -> how they are written; of forms that begin at one place, the first one here
    "points": rf"<points?\b[^<>]*?{_named('x1?', 'y1?')}",  # of several points the first
    "loc box": LOC * 4,
    "loc": LOC * 2,
    "size": _named("x|left", "y|top", "w|width", "h|height"),
    "box": "|".join((_named("x1", "y1", "x2", "y2"), _named("x0", "y0", "x1", "y1"),
                     _named("x_?min|left", "y_?min|top", "x_?max|right", "y_?max|bottom"))),
    "corners": rf"{_corner('top|upper', 'left')}[^\d()\[\]]*{_corner('bottom|lower', 'right')}",
    "named": _named("x1?", "y1?"),
    "named, y first": _named("y1?", "x1?"),
    "pairs": rf"[(\[]\s*{PAIR}\s*[)\]]\s*,?\s*[(\[]\s*{PAIR}\s*[)\]]",  # (x0, y0), (x1, y1)
    "group": rf"[(\[>]\s*{PAIR}(?:\s*[,;\s]\s*{PAIR})?\s*[)\]<]",  # (x, y) or [x0, y0, x1, y1]
}  # fmt: skip
TOLD = rf"\b(?:click|tap|press|touch|point|coordinate|position|locat)\w*[^\w(\[]+(?:(?:{LEAD})\b[^\w(\[]*)*"
FORMS["told"] = rf"{TOLD}({NUMBER})\s*,\s*({NUMBER})(?!\s*,?\s*[\d.])"
BARE = rf"\s*{PAIR}(?:\s*[,;\s]\s*{PAIR})?\s*\.?\s*"


UNNAMED = ("pairs", "group", "told", "bare")  # forms that do not say which number is which


class Pointed(NamedTuple):
    """Where an answer points, the units that it says itself ("hundred": percent, "loc": tokens), and its box."""

    place: Point
    units: str | None = None
    box: Box | None = None


def pointed(answer: str, y_first: bool = False) -> Pointed | None:
    """Return the first point that an answer states, in the answer's own units; the middle of a box where it gives one.

    Thoughts are not part of the answer; an `<answer>`, a box or "the answer is" goes before the rest. Read are `x=1,
    y=2`, also with numbers behind the names, boxes by their corners or by a corner and a size, `(x0, y0), (x1, y1)`,
    `(x, y)` and `[x0, y0, x1, y1]` in round or square brackets or between tags, percent, tokens such as
    `<loc0300><loc0500>` (y first), anywhere in the text; and two or four bare numbers where the text is nothing else.
    With `y_first`, numbers without names are y before x.
    """
    text = re.sub(r"\\(?:left|right)\b", "", unicodedata.normalize("NFKC", unwrapped(answer)))
    for part in filter(None, (concluded(text), text)):
        if found := _first(part, y_first):
            return found
    return None


def point(answer: str) -> Point | None:
    """Return the point of `pointed` without the units."""
    found = pointed(answer)
    return None if found is None else found.place


def clicked(answer: str, units: str, size: Size, resized: Size | None = None) -> Point | None:
    """Return where an answer points, in pixels of an image of `size`; units that the answer says itself go first.

    Raises:
        ValueError: unknown units.
    """
    found = pointed(answer, units.endswith(DOWN_FIRST))
    return None if found is None else in_pixels(found.place, found.units or units, size, resized)


def boxed(answer: str, units: str, size: Size, resized: Size | None = None) -> Box | None:
    """Return the box that an answer gives, in pixels of an image of `size`; None where it gives none.

    Raises:
        ValueError: unknown units.
    """
    found = pointed(answer, units.endswith(DOWN_FIRST))
    if found is None or found.box is None:
        return None
    own = found.units or units
    (x0, y0), (x1, y1) = (in_pixels(corner, own, size, resized) for corner in (found.box[:2], found.box[2:]))
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def iou(first: Box, second: Box) -> float:
    """Return the intersection of two boxes over their union; 0 for boxes without an area."""
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    common = max(0.0, across) * max(0.0, down)
    whole = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - common
    return common / whole if whole > 0 else 0.0


def _first(text: str, y_first: bool) -> Pointed | None:
    forms = [(name, found) for name, form in FORMS.items() if (found := re.search(form, text, re.IGNORECASE))]
    name, match = min(forms, key=lambda form: form[1].start(), default=("bare", re.fullmatch(BARE, text)))
    if match is None:
        return None
    written = [value for value in match.groups() if value is not None]
    numbers = [float(value.rstrip("%px ")) for value in written]
    units = "hundred" if all(value.endswith("%") for value in written) else None
    if name.startswith("loc") or name == "named, y first" or (y_first and name in UNNAMED):
        numbers = [numbers[i ^ 1] for i in range(len(numbers))]
    if name.startswith("loc"):
        units = "loc"
    x, y, *rest = numbers
    if not rest or name == "points":
        return Pointed((x, y), units)
    box = (x, y, x + rest[0], y + rest[1]) if name == "size" else (x, y, rest[0], rest[1])
    return Pointed(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), units, box)


def in_pixels(place: Point, units: str, size: Size, resized: Size | None = None) -> Point:
    """Return a point in pixels of an image of `size` (width, height); `resized` is its size behind the processor.

    Raises:
        ValueError: unknown units.
    """
    if units not in UNITS:
        raise ValueError(f"units {units!r} are unknown: choose from {', '.join(UNITS)}")
    own = {"pixels": size, "resized": resized or size}
    whole = own.get(units) or (WHOLE[units], WHOLE[units])
    return place[0] * size[0] / whole[0], place[1] * size[1] / whole[1]


def hits(place: Point, box: tuple[float, float, float, float]) -> bool:
    """Return whether a point lies in a box (x0, y0, x1, y1), edges included, as ScreenSpot scores it (2401.10935)."""
    return box[0] <= place[0] <= box[2] and box[1] <= place[1] <= box[3]
