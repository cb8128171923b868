"""Read which decoder layers a correction acts in, from a short text that may be relative to the depth."""

from __future__ import annotations

import re

from vlmopt.core import shown

BOUND = re.compile(r"(-?)(\d{1,9})(%?)")


def layer_numbers(text: str, depth: int, label: str = "layers") -> frozenset[int]:
    """Return the layer numbers of "2:-1", "1,18:32" or "28%:47%": indices and half-open slices.

    A percentage is taken of `depth` and rounded. Bounds of slices may lie beyond the depth, indices may not.

    Raises:
        ValueError: malformed, or an index of a layer that does not exist.
    """
    found: set[int] = set()
    for part in text.split(","):
        start, colon, end = part.strip().partition(":")
        bounds = [place(bound, depth, text, label) for bound in (start, end)]
        if colon:
            found |= set(range(depth)[slice(*bounds)])
            continue
        index = bounds[0]
        if index is None or not -depth <= index < depth:
            raise ValueError(
                f"{label}: layers={shown(text)}: layer {shown(part.strip())} does not exist in 0..{depth - 1}"
            )
        found.add(index % depth)
    return frozenset(found)


def check_layers(text: str, label: str = "layers") -> None:
    """Raise `ValueError` if the text is malformed, whatever the depth."""
    for part in text.split(","):
        bounds = [place(bound, 100, text, label) for bound in part.strip().split(":", 1)]
        if bounds == [None]:
            raise ValueError(f"{label}: layers={shown(text)} has an empty part; give indices and slices such as '2:-1'")


def place(bound: str, depth: int, text: str, label: str) -> int | None:
    """Return a signed layer number; None for an open end."""
    bound = bound.strip()
    if not bound:
        return None
    match = BOUND.fullmatch(bound)
    if match is None:
        raise ValueError(
            f"{label}: layers={shown(text)} is malformed at {shown(bound)}; give indices and slices such as "
            "'2:-1', '1,-44%:' or '28%:47%'"
        )
    sign, digits, percent = match.groups()
    number = round(depth * int(digits) / 100) if percent else int(digits)
    return -number if sign else number
