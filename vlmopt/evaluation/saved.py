"""Read back what an earlier start wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlmopt.core import shown


def saved(path: Path, kind: type, advice: str) -> Any:
    """Return the contents of a JSON file, a list or a dict as `kind` says; an empty one where there is no such file.

    Raises:
        ValueError: it is damaged; `advice` says what to do. OSError: it cannot be read.
    """
    if not path.exists():
        return kind()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): {advice}") from error
    if not isinstance(data, kind):
        raise ValueError(f"{path} is damaged (it holds {shown(data)}): {advice}")
    return data


def saved_environment(run: Path) -> dict[str, Any]:
    """Return what environment.json of a directory says, nothing where there is none; errors as for `saved`."""
    found: dict[str, Any] = saved(run / "environment.json", dict, "delete it, and earlier starts are forgotten")
    return found
