"""Read policies written in one line, as on a command line: `fastv:keep_ratio=0.1,layer=4`, joined by `+`; no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .. import catalogue
from ..choices import POLICY_LINE
from ..core import near, shown, unknown_setting
from ..core import parse as parse_json

LONGEST = 10_000  # characters of a line
TERM = re.compile(r"\s*([A-Za-z][A-Za-z0-9_-]*)\s*(?::(.*))?", re.DOTALL)
FRACTION = re.compile(r"[+-]?(\d+\.|\.\d+)")  # 1. and .5, which JSON does not know


def check(text: str) -> None:
    """Refuse a name, a line or a path that names what does not exist; files and JSON are left to who reads them.

    Settings of other packages' methods are left to `Policy`, which loads these.

    Raises:
        ValueError: as by `parse`, no preset has the name, or no file is there.
    """
    if text.lstrip("\ufeff \t\n").startswith(("{", "[")) or os.path.exists(text):
        return
    known = catalogue.methods()
    if catalogue.preset(text) is not None:
        return
    if (rows := parse(text, set(known))) is None:
        raise no_file(text) if is_path(text) else unknown(text, known)
    check_settings(rows)


def check_settings(rows: Iterable[Any]) -> None:
    """Refuse settings that a method of this package does not have, also of a method that is another's setting."""
    for row in rows:
        if isinstance(row, Mapping):
            name = str(row.get("method"))
            for key in row if name in catalogue.settings() else ():
                if key not in ("method", *catalogue.settings()[name]):
                    raise ValueError(unknown_setting(name, key, catalogue.settings()[name]))
            check_settings(row.values())


def is_path(text: str) -> bool:
    """Tell what can only be meant as a path, whether it exists or not."""
    return os.sep in text or text.endswith(".json")


def no_file(path: str) -> ValueError:
    """Return the error for a path at which there is nothing."""
    return ValueError(f"no policy file at {shown(path)}")


def unknown(name: str, known: Iterable[str], paths: bool = True) -> ValueError:
    """Return the error for a word that is no policy."""
    presets = sorted(catalogue.presets())
    a_path = "the path of a policy file or directory, " if paths else ""
    return ValueError(
        f"unknown preset {shown(name)}{near(name, [*presets, *known])}; presets: {', '.join(presets)}. "
        f"A string may also be {a_path}a policy in JSON, or {POLICY_LINE}."
    )


def parse(text: str, known: set[str]) -> list[dict[str, Any]] | None:
    """Read a one-line policy as the dict forms of its methods.

    Args:
        text: terms joined by "+". A term is a preset's name, or a method's with its settings; values are JSON, and
            what is not JSON is a string.
        known: names of methods.

    Returns:
        None where the text is no such line: its first term has no settings and names no method, or it is too long.

    Raises:
        ValueError: a term that cannot be read, or an unknown name.
    """
    if len(text) > LONGEST:
        return None
    terms = split(text, "+")
    first = TERM.fullmatch(terms[0])
    if first is None or (first[2] is None and len(terms) == 1 and first[1] not in known):
        return None
    return [method for term in terms for method in methods_of(term, known)]


def methods_of(term: str, known: set[str]) -> list[dict[str, Any]]:
    """Read one term: the methods of a preset, or a method with its settings."""
    found = TERM.fullmatch(term)
    if found is None:
        raise ValueError(f"{shown(term)} is not part of a policy; write {POLICY_LINE}")
    name, settings = found[1], found[2]
    preset = catalogue.preset(name)
    if preset is not None and name not in known:
        if settings is not None:
            raise ValueError(f"{name!r} is a preset and takes no settings; name its methods instead: {POLICY_LINE}")
        return preset_methods(preset)
    if name not in known:
        names = sorted(known)
        hint = near(name, [*names, *catalogue.presets()])
        raise ValueError(f"unknown method {shown(name)}{hint}; known: {', '.join(names)}")
    data: dict[str, Any] = {"method": name}
    for word in split(settings or "", ","):
        key, sign, value = word.partition("=")
        key = key.strip()
        if not sign and not word.strip():
            continue
        if not sign or not key or key == "method" or key in data:
            raise ValueError(f"{name}: {shown(word.strip())} is not a new setting=value; write {POLICY_LINE}")
        data[key] = value_of(value.strip())
    return [data]


def preset_methods(preset: catalogue.Preset) -> list[dict[str, Any]]:
    prefill = preset.policy.get("prefill")
    pattern = [] if prefill is None else [prefill["pattern"]]
    evicted = [preset.policy["kv"]] if "kv" in preset.policy else []
    lists = [method for key in ("prune", "attention", "decoding") for method in preset.policy.get(key, [])]
    return [*lists, *pattern, *evicted]


def value_of(text: str) -> Any:
    """Read a JSON value, or else the text itself; True, False, None and fractions may be written as in Python."""
    if FRACTION.fullmatch(text):
        return float(text)
    try:
        return parse_json({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text


def split(text: str, by: str) -> list[str]:
    """Split at a sign that stands outside brackets and quotes."""
    parts, depth, quoted = [""], 0, False
    for letter in text:
        quoted ^= letter == '"'
        depth += 0 if quoted else (letter in "[{(") - (letter in "]})")
        if letter == by and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
