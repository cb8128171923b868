"""Write down the names of every method's settings: `python -m tools.method_settings`.

The command line refuses a misspelt setting by them, without torch. A test compares them with the methods.
"""

from __future__ import annotations

import json
from pathlib import Path

from vlmopt import methods

STORED = Path(__file__).parents[1] / "vlmopt/policy/settings.json"


def found() -> dict[str, list[str]]:
    """Return the names of the settings of every method of this package."""
    own = {name: cls for name, cls in methods.registered().items() if cls.__module__.startswith("vlmopt.")}
    return {name: [f.name for f in methods.stored(cls)] for name, cls in sorted(own.items())}


if __name__ == "__main__":
    lines = [f"  {json.dumps(name)}: {json.dumps(names)}" for name, names in found().items()]
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
