"""Data formats, one file each: `NAME`, `HELP`, `recognises(entries)` and `read(source)`."""

from __future__ import annotations

from types import ModuleType

from ...paths import check_data
from ..data import Source
from . import chair, documents, manifest, pope, refcoco, screenspot, tsv, videomme, worlds
from .files import Reader, files, load

# The manifest comes behind those that have its fields, too.
READERS = (pope, chair, screenspot, refcoco, documents, videomme, tsv, manifest, worlds)
FORMATS: dict[str, ModuleType] = {module.NAME: module for module in READERS}


def reader(source: Source) -> Reader:
    """Return the reader of a source, by name or by what its first file holds.

    Raises:
        ValueError: unknown format, or contents of none.
        FileNotFoundError: no file and no generated worlds of that name.
    """
    if source.format is not None and source.format not in FORMATS:
        raise ValueError(f"--format {source.format!r} is unknown: choose from {', '.join(FORMATS)}")
    named = source.format or next((worlds.NAME for name in source.data if worlds.is_name(name)), None)
    if named is not None:
        return _read(FORMATS[named])
    check_data(source.data)
    first = files(source)[0]
    entries = load(first)
    if not entries:
        raise ValueError(f"{first} holds no samples")
    for module in FORMATS.values():
        if module.recognises(entries):
            return _read(module)
    fields = sorted({key for _, entry in entries[:20] for key in entry})
    raise ValueError(
        f"{first} has the fields {', '.join(fields) or '(none)'}, which belong to no known format: "
        + "; ".join(f"{name}: {module.HELP}" for name, module in FORMATS.items())
    )


def _read(module: ModuleType) -> Reader:
    read: Reader = module.read
    return read
