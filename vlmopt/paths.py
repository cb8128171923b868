"""Refuse paths that are no readable files, in one sentence each."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from .choices import WORLDS
from .core import near


def check_file(path: str | os.PathLike[str], what: str) -> Path:
    """Return the path if it is a readable, non-empty, regular file.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: each names the path.
        ValueError: an empty file, a pipe, a socket or a device.
    """
    file = Path(path)
    if not os.path.exists(file):  # pathlib raises where a name is too long
        raise FileNotFoundError(f"{what} not found: {file}")
    if file.is_dir():
        raise IsADirectoryError(f"{what} is a directory, expected a file: {file}")
    if not file.is_file():
        raise ValueError(
            f"{what} is not a regular file: {file} (a pipe, socket or device could be waited for for ever)"
        )
    if not os.access(file, os.R_OK):
        raise PermissionError(f"{what} is not readable: {file}")
    if file.stat().st_size == 0:
        raise ValueError(f"{what} is empty (0 bytes): {file}")
    return file


def check_data(names: Iterable[str]) -> None:
    """Refuse data that is neither a path here nor generated.

    Raises:
        ValueError: generated images of an unknown kind. FileNotFoundError: no such path. Both name what is nearest.
    """
    for name in names:
        if name in WORLDS or os.path.exists(name):
            continue
        if name.startswith(f"{WORLDS[0]}:"):
            raise ValueError(f"--data {name!r} is unknown{near(name, WORLDS)}; known: {', '.join(WORLDS)}")
        raise FileNotFoundError(f"data not found: {name}{near(name, WORLDS)}")
