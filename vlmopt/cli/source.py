"""The data that options of a command name, where it is asked for answers: `eval` and `tune`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..evaluation.data import Source


def source_of(options: argparse.Namespace) -> Source:
    """Make `evaluation.data.Source` of the options."""
    return Source(
        data=tuple(options.data),
        run=Path(options.out),
        format=options.format,
        images=options.images,
        boxes=options.boxes,
        synonyms=options.synonyms,
        limit=options.limit,
        seed=options.seed or 0,
    )
