"""Settings of a method: dataclass fields with help, range and choices, and the check that reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import Field, field, fields
from numbers import Integral, Rational, Real
from typing import Any, TypeVar

from .data import shown
from .suggest import near, unknown_setting

Own = TypeVar("Own", bound="Configured")
BITS = 64  # of a whole number in a tensor
LEAST, MOST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # of normal numbers in fp32, which scores are
KINDS: dict[str, tuple[Any, str]] = {
    "float": (Real, "a number"),
    "int": (Integral, "a whole number"),
    "str": (str, "a string"),
    "bool": (bool, "True or False"),
    "floats": (Real, "a list of numbers"),
    "ints": (Integral, "a list of whole numbers"),
}


def setting(
    default: Any,
    help: str,
    kind: str,
    *,
    min: float | None = None,
    max: float | None = None,
    above: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """Return a dataclass field with metadata for validation, forms and command lines.

    Args:
        default: the default; None means that the setting need not be given.
        help: one sentence for people, with the unit.
        kind: "float", "int", "str", "bool", or "floats" and "ints" for tuples of them.
        min, max: inclusive bounds, of every entry. above: exclusive lower bound.
        choices: allowed strings.
    """
    given = {"help": help, "kind": kind, "min": min, "max": max, "above": above, "choices": choices}
    return field(default=default, metadata={k: v for k, v in given.items() if v is not None})


class Configured:
    """Base of dataclasses that refuse unknown settings, naming the nearest known one, and settings without a name."""

    def __new__(cls: type[Own], *args: Any, **settings: Any) -> Own:
        taken = [f for f in fields(cls) if f.init]  # type: ignore[arg-type]  # subclasses are dataclasses
        names = [f.name for f in taken]
        places = [f.name for f in taken if not f.kw_only]
        if len(args) > len(places):
            free = [name for name in names if name not in {*places, *settings}] or names
            raise TypeError(
                f"{cls.__name__}: {shown(args[len(places)])} is given without a name; write "
                f"{cls.__name__}({free[0]}=...); settings: {', '.join(names)}"
            )
        for name in settings:
            if name not in names:
                raise TypeError(unknown_setting(cls.__name__, name, names))
        return super().__new__(cls)


def validate(owner: Any, label: str) -> None:
    """Check every `setting` of a frozen dataclass; numbers become plain Python numbers.

    Raises:
        TypeError: a value of the wrong kind (a bool is not a number).
        ValueError: NaN, out of range, not among the choices.
    """
    for f in fields(owner):
        if "kind" in f.metadata:
            value = getattr(owner, f.name)
            if f.metadata["kind"] in ("floats", "ints") and isinstance(value, (tuple, list)):
                object.__setattr__(owner, f.name, tuple(checked(entry, f, label) for entry in value))
            elif f.metadata["kind"] in ("floats", "ints"):
                words = KINDS[f.metadata["kind"]][1]
                raise TypeError(f"{label}: {f.name} must be {words}, got {shown(value)} of type {type(value).__name__}")
            else:
                object.__setattr__(owner, f.name, checked(value, f, label))


def checked(value: Any, f: Field[Any], label: str) -> Any:
    """Return the value as a plain Python one; raise if it does not fit the field."""
    meta = f.metadata
    if value is None and f.default is None:
        return None
    expected, words = KINDS[meta["kind"]]
    if not isinstance(value, expected) or (isinstance(value, bool) and meta["kind"] != "bool"):
        raise TypeError(
            f"{label}: {f.name} must be {words}{range_text(meta)}, got {shown(value)} of type {type(value).__name__}"
        )
    if meta["kind"] not in ("str", "bool"):
        value, given = number(value, meta["kind"], f"{label}: {f.name}"), value
        low, high, above = meta.get("min", -math.inf), meta.get("max", math.inf), meta.get("above", -math.inf)
        if not (low <= value <= high and value > above and math.isfinite(value)):
            raise ValueError(f"{label}: {f.name} must be {words}{range_text(meta)}, got {shown(given)}")
    elif value not in meta.get("choices", (value,)):
        allowed = meta["choices"]
        hint = near(value, allowed)
        raise ValueError(f"{label}: {f.name} must be one of {', '.join(allowed)}; got {shown(value)}{hint}")
    return value


def number(value: Any, kind: str, what: str) -> float | int:
    """Return a plain Python number; `ValueError` for one that fits no tensor: what divides by it would be no number."""
    if isinstance(value, Rational) and abs(value) >= 2 ** (BITS - 1):
        raise ValueError(f"{what} must be a number of at most {BITS} bits, got {shown(value)}")
    if kind in ("int", "ints"):
        return int(value)
    if value and math.isfinite(value) and not LEAST <= abs(value) <= MOST:
        raise ValueError(f"{what} must be 0 or a number from {LEAST:.2g} to {MOST:.2g} in size, got {shown(value)}")
    return float(value)


def range_text(meta: Any) -> str:
    """Return " > 0 and <= 1" for a message; empty without bounds."""
    bounds = [(">", meta.get("above")), (">=", meta.get("min")), ("<=", meta.get("max"))]
    text = " and ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None)
    return f" {text}" if text else ""
