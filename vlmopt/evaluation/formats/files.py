"""Read JSON and JSON lines; name the line or the number of what is wrong."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ...core import near, parse
from ...paths import check_file
from ..data import Data, Source
from .columns import columns

Entry = tuple[str, dict[str, Any]]  # where it stands, for messages, and what it says
Reader = Callable[[Source], Data]
SUFFIXES = (".json", ".jsonl", ".tsv", ".parquet")
SAVED = ("dataset_info.json", "dataset_dict.json")  # what a directory of Hugging Face's `datasets` holds


def files(source: Source) -> list[Path]:
    """Return the files of a source; a directory stands for the data files in it, or is one of `datasets`.

    Raises:
        ValueError: a directory without any. OSError: no such file.
    """
    found: list[Path] = []
    for name in source.data:
        path = Path(name)
        if is_saved(path):
            found.append(path)
            continue
        inside = sorted(file for file in path.glob("*") if file.suffix in SUFFIXES) if path.is_dir() else []
        if path.is_dir() and not inside:
            raise ValueError(f"{path} holds no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
        found += [check_file(file, "data") for file in inside or [path]]
    return found


def is_saved(path: Path) -> bool:
    """Tell a directory that `datasets` saved."""
    return any(os.path.isfile(path / name) for name in SAVED)


def load(path: Path) -> list[Entry]:
    """Return the entries of a JSON list, of one JSON object, of JSON lines, of tab-separated rows, or of `datasets`.

    Raises:
        ValueError: no JSON, or entries that are not objects; names the line or the number.
    """
    if path.suffix == ".parquet" or path.is_dir():
        return columns(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if path.suffix == ".tsv":
        return _rows(path, text)
    try:
        whole = parse(text, _missing)
        values = whole if isinstance(whole, list) else [whole]
        entries = [(f"{path}, entry {number}", value) for number, value in enumerate(values, start=1)]
    except ValueError as error:
        if path.suffix == ".json" and text.lstrip().startswith("["):
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        entries = [
            entry for number, line in enumerate(text.splitlines(), start=1) for entry in _line(path, number, line)
        ]
    for where, value in entries:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is a {type(value).__name__}, expected an object with fields")
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{where} holds half of a character (a lone surrogate), which no file can take") from error
    return entries


def _rows(path: Path, text: str) -> list[Entry]:
    """Return tab-separated rows by the names in the first; cells are texts, however long."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t")
    rows = []
    for number, row in enumerate(reader, start=1):
        if None in row or None in row.values():
            raise ValueError(f"{path}, row {number}, has another number of cells than the first row has names")
        rows.append((f"{path}, row {number}", dict(row)))
    return rows


def _missing(constant: str) -> None:
    """Read NaN and infinities as missing: they are no JSON, but pandas writes them where there is nothing."""


def _line(path: Path, number: int, line: str) -> list[tuple[str, Any]]:
    if not line.strip():
        return []
    try:
        return [(f"{path}, line {number}", parse(line, _missing))]
    except ValueError as error:
        raise ValueError(f"{path}, line {number}, is not valid JSON: {error}") from error


def need(entry: Mapping[str, Any], name: str, where: str, kind: type | tuple[type, ...] = str) -> Any:
    """Return a field that must be there.

    Raises:
        ValueError: missing, empty, or of another type.
    """
    value = entry.get(name)
    if value is None or value == "":
        raise ValueError(f"{where}: the field {name!r} is missing or empty; there are {', '.join(map(repr, entry))}")
    if not isinstance(value, kind) or isinstance(value, bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{where}: {name} is {value!r}, expected {names}")
    return value


def refuse_unknown(entry: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse fields that mean nothing here.

    Raises:
        ValueError: there is one, most often a slip of the pen.
    """
    for name in entry:
        if name not in known:
            raise ValueError(
                f"{where}: unknown field {name!r}{near(name, list(known))}; the fields are {', '.join(known)}"
            )


def rest(entry: Mapping[str, Any], used: Collection[str]) -> dict[str, Any]:
    """Return the further fields of a public data set, for the record."""
    return {name: value for name, value in entry.items() if name not in used}
