"""Names of models: which come with the package, and which can be no model at all."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .. import catalogue
from ..core import near, shown

HERE = Path(__file__).parent
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
LONGEST = 96  # characters of a Hub id


def bundled() -> list[str]:
    """Return the names of the checkpoints in the package."""
    return sorted(path.parent.name for path in HERE.glob("*/config.json"))


def check_name(name: str) -> None:
    """Refuse a name that can be no model without loading anything.

    Raises:
        ValueError: neither a bundled name, nor a directory with a model in it, nor a Hub id.
    """
    if name in bundled() or os.path.isfile(os.path.join(name, "config.json")):  # pathlib raises on long names
        return
    if os.path.isdir(name):
        raise ValueError(f"{name} is a directory without config.json, so no model was saved there")
    if os.path.exists(name):
        raise ValueError(f"{name} is a file; give the directory that holds config.json and the weights")
    if not is_hub_id(name):
        hint = near(name, bundled())
        raise ValueError(f"model {shown(name)} is not {choices()}{hint}, no directory here, and no Hub id (owner/name)")


def check_described(name: str) -> None:
    """Refuse a name of a model that no config can be had by, without loading anything.

    Raises:
        ValueError: no path here, not bundled, not in the shipped table, and no Hub id.
    """
    known = catalogue.configs()
    if name not in (*bundled(), *known) and not os.path.exists(name) and not is_hub_id(name):
        raise ValueError(
            f"model {shown(name)} is no config.json, no directory here, no Hub id (owner/name), and not in the shipped "
            f"table{near(name, known)}; see `vlmopt estimate --models`"
        )


def is_hub_id(name: str) -> bool:
    """Tell what may be owner/name on the Hub."""
    return len(name) <= LONGEST and not name.startswith(".") and HUB_ID.fullmatch(name) is not None


def choices() -> str:
    """Name the bundled checkpoints in a sentence."""
    return f"a bundled checkpoint ({', '.join(bundled()) or 'none'})"
