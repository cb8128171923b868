"""The rendered pages that clicks are asked on: the whole set where it was made, else the part in the repository."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "screens"
LIST = "held-out_web.json"
WHOLE = 192  # images
MAKE = (
    f"vlmopt make-screens --out benchmarks/screens/whole --split held-out --count {WHOLE} --size 1280x800 --seed 0 "
    "--cell 14"
)


@dataclass(frozen=True)
class Pages:
    """Images of one folder, and what to click on them: rows in ScreenSpot's format."""

    folder: Path
    rows: list[dict[str, Any]]
    digest: str

    @property
    def images(self) -> int:
        return len({row["img_filename"] for row in self.rows})

    @property
    def name(self) -> str:
        """For results: how many images, and eight digits that tell one browser's list from another's."""
        return f"{self.images} images, list {self.digest}"


def pages(folder: Path = FOLDER) -> Pages:
    """Return the set to ask about; where it is not the whole one, stderr says so and how to make that."""
    whole = folder / "whole" / LIST
    path = whole if whole.exists() else folder / LIST
    text = path.read_bytes()
    found = Pages(path.parent, json.loads(text), hashlib.sha256(text).hexdigest()[:8])
    if found.images < WHOLE:
        print(
            f"note: {found.images} rendered pages are here, published figures have {WHOLE}; make the others with\n"
            f"    {MAKE}",
            file=sys.stderr,
        )
    return found
