"""Write files that are there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write to a neighbour, which takes the place of `path` at the end of the block.

    A kill, a full disk or an exception in the block leaves the old file as it was, or none.

    Raises:
        OSError: it cannot be written.
    """
    fresh = path.with_name(path.name + ".new")
    try:
        yield fresh
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())  # the name must not reach the disk before what it names
        fresh.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from error
    finally:
        fresh.unlink(missing_ok=True)
