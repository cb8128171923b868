"""Where an answer points: coordinates from text, in the units that models use, and whether they hit a box."""

from __future__ import annotations

import re

Point = tuple[float, float]
# pixels: of the picture as given; resized: of the picture as the processor resizes it; unit: fractions, 0 to 1;
# thousand: thousandths, 0 to 1000.
UNITS = ("pixels", "resized", "unit", "thousand")
# What models of a type were taught to answer in; all others: pixels.
UNITS_OF = {"qwen2_vl": "thousand", "qwen2_5_vl": "resized", "qwen3_vl": "thousand", "qwen3_vl_moe": "thousand"}

NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"
PAIR = rf"({NUMBER})\s*[,;\s]\s*({NUMBER})"
QUOTE = r"[\"']?"
NAMED = rf"\bx{QUOTE}\s*[=:]\s*{QUOTE}({NUMBER}){QUOTE}\s*[,;\s]\s*{QUOTE}y{QUOTE}\s*[=:]\s*{QUOTE}({NUMBER})"
PAIRS = rf"[(\[]\s*{PAIR}\s*[)\]]\s*,?\s*[(\[]\s*{PAIR}\s*[)\]]"  # (x0, y0), (x1, y1)
GROUP = rf"[(\[>]\s*{PAIR}(?:\s*[,;\s]\s*{PAIR})?\s*[)\]<]"  # (x, y) or [x0, y0, x1, y1]
BARE = rf"\s*{PAIR}(?:\s*[,;\s]\s*{PAIR})?\s*\.?\s*"


def point(answer: str) -> Point | None:
    """The first point that an answer names, in the answer's own units; the middle of a box where it gives one.

    Read are `x=1, y=2`, `(x0, y0), (x1, y1)`, `(x, y)` and `[x0, y0, x1, y1]` in round or square brackets or
    between tags, anywhere in the text, and two or four bare numbers where the text is nothing else.
    """
    forms = (re.search(NAMED, answer, re.IGNORECASE), re.search(PAIRS, answer), re.search(GROUP, answer))
    found = min((form for form in forms if form), key=lambda form: form.start(), default=re.fullmatch(BARE, answer))
    if found is None:
        return None
    numbers = [float(value) for value in found.groups() if value is not None]
    x, y = numbers[0], numbers[1]
    return ((x + numbers[2]) / 2, (y + numbers[3]) / 2) if len(numbers) == 4 else (x, y)


def in_pixels(place: Point, units: str, size: tuple[int, int], resized: tuple[int, int] | None = None) -> Point:
    """A point in pixels of a picture of `size` (width, height); `resized` is its size behind the processor.

    Raises:
        ValueError: unknown units.
    """
    if units not in UNITS:
        raise ValueError(f"units {units!r} are unknown: choose from {', '.join(UNITS)}")
    whole = {"pixels": size, "resized": resized or size, "unit": (1, 1), "thousand": (1000, 1000)}[units]
    return place[0] * size[0] / whole[0], place[1] * size[1] / whole[1]


def hits(place: Point, box: tuple[float, float, float, float]) -> bool:
    """Whether a point lies in a box (x0, y0, x1, y1), edges included, as in the scorer of ScreenSpot (2401.10935)."""
    return box[0] <= place[0] <= box[2] and box[1] <= place[1] <= box[3]
