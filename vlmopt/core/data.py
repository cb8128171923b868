"""Read JSON strictly, show values in messages, and limit how deep input may nest."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from reprlib import Repr
from typing import Any

DEPTH = 32  # no policy or profile nests half as deep


class _Short(Repr):
    def repr_int(self, x: int, level: int) -> str:
        """Cut whole numbers of thousands of digits, which Python refuses to write."""
        return repr(x) if x.bit_length() <= 128 else f"<a whole number of {x.bit_length()} bits>"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlevel = 4


def shown(value: Any) -> str:
    """Return `repr` for messages, cut where it is long or deep."""
    return _SHORT.repr(value)


def parse(text: str, constant: Callable[[str], Any] | None = None) -> Any:
    """Parse JSON strictly: no key twice, no NaN or infinity, no deeper than `DEPTH`; a byte order mark is skipped.

    Args:
        constant: makes the value of NaN, Infinity and -Infinity from their name; None refuses them.

    Raises:
        ValueError: not such JSON.
    """
    try:
        data = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_once, parse_constant=constant or _refused)
    except RecursionError:
        raise ValueError(f"nested more than {DEPTH} deep") from None
    check_depth(data)
    return data


def check_depth(data: Any) -> None:
    """Raise `ValueError` if lists and dicts nest more than `DEPTH` deep, or hold themselves."""
    level = [data]
    for _ in range(DEPTH + 1):
        inside = (entry for parent in level for entry in _entries(parent))
        level = list({id(entry): entry for entry in inside if isinstance(entry, (Mapping, list, tuple))}.values())
        if not level:
            return
    raise ValueError(f"nested more than {DEPTH} deep, got {shown(data)}; give plain lists and dicts")


def _entries(data: Any) -> Any:
    if isinstance(data, Mapping):
        return data.values()
    return data if isinstance(data, (list, tuple)) else ()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {shown(next(key for key in data if keys.count(key) > 1))} is given twice; keep one")
    return data


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is not a number; give a finite one")
