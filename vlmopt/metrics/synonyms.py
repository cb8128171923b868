"""Read a table of synonyms from a user's file, such as the reference table of CHAIR."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..paths import check_file
from .coco import EXCLUSIONS, PAIRS
from .lexicon import Lexicon

REFERENCE_SHA256 = "b685537b36fe21b791c87151b96a991ceb582edff19f3da204dcc7a7905502f2"


def load_synonyms(path: str | Path) -> Lexicon:
    """Read CHAIR's table from the user's file: a line per object, the canonical name first, then synonyms.

    Entries are split at ", " and kept as they are, so that those of the reference table which can never match do not
    start to. Pairs of words and exclusions are those of `coco_lexicon`.

    Raises:
        ValueError: the file holds no names, or is not a regular one. FileNotFoundError, IsADirectoryError,
            PermissionError: a bad path.
    """
    content = check_file(path, "table of synonyms").read_bytes()
    groups = [line.rstrip("\r").split(", ") for line in content.decode("utf-8").split("\n") if line.strip()]
    if not groups:
        raise ValueError(f"{str(path)!r} holds no names: expected lines such as 'couch, sofa'")
    known = hashlib.sha256(content).hexdigest() == REFERENCE_SHA256
    source = "reference table" if known else f"{Path(path).name}, not the reference table"
    return Lexicon({word: group[0] for group in groups for word in group}, PAIRS, source, EXCLUSIONS)
