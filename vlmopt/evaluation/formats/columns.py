"""Parquet files and directories of Hugging Face's `datasets`, row by row, with the images inside of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..packed import Packed

ALIASES = {"answers": "answer", "options": "choices", "question_id": "id"}  # what the manifest calls these


def columns(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of a parquet file, or of a directory that `datasets` saved; empty cells are left out.

    Raises:
        ValueError: `datasets` is not installed, several splits, or no such data.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{path} needs the package datasets: pip install datasets") from error
    try:
        read = datasets.load_from_disk if path.is_dir() else datasets.Dataset.from_parquet
        table = read(str(path))
    except Exception as error:  # pyarrow and datasets raise what their readers meet
        raise ValueError(f"{path} cannot be read by datasets: {type(error).__name__}: {error}") from error
    if isinstance(table, datasets.DatasetDict):
        raise ValueError(
            f"{path} holds the splits {', '.join(table)}: name one of them, such as {path / next(iter(table))}"
        )
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return list(_rows(path, table))


def _rows(path: Path, table: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(table, start=1):
        cells = {name: _cell(cell) for name, cell in row.items() if cell is not None}
        yield f"{path}, row {number}", cells


def _cell(cell: Any) -> Any:
    """Return a cell as JSON would have it; an image becomes its name, or its path where it lies outside."""
    if isinstance(cell, Mapping) and "bytes" in cell and "path" in cell:
        return Packed.of(cell["bytes"]) if cell["bytes"] is not None else os.path.abspath(str(cell["path"]))
    return [_cell(one) for one in cell] if isinstance(cell, list) else cell
