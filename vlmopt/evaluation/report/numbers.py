"""Write figures for people."""

from __future__ import annotations

import re

from markupsafe import Markup


def number(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """Write a number for people: a real minus sign, a dash for nothing."""
    if value is None:
        return "–"
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = f"{0:.{digits}f}"  # no sign before a rounded zero
    return text.replace("-", "−")


def breakable(name: str) -> Markup:
    """Let a long name of a policy be broken behind its signs, and not within a word."""
    return Markup("<wbr/>").join(re.findall(r"[^_:,+@/=]*[_:,+@/=]?", name))


def count(value: float | None) -> str:
    """Write whole numbers without decimals."""
    return number(value, 0 if value is not None and value == round(value) else 1)


def milliseconds(value: float | None) -> str:
    """Write at least three digits, no decimals from 100 on."""
    return number(value, 0 if value is not None and value >= 100 else 1)


def probability(p: float | None) -> str:
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
