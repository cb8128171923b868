"""POPE: is an object in the image? One JSON object a line, one file per split (arXiv 2305.10355)."""

from __future__ import annotations

from collections.abc import Sequence

from ..data import Data, Sample, Source
from .files import Entry, files, load, need, rest

NAME = "pope"
HELP = "JSON lines with question_id, image, text, label"
SPLITS = ("random", "popular", "adversarial")
USED = ("question_id", "image", "text", "label")


def recognises(entries: Sequence[Entry]) -> bool:
    return bool(entries) and {"image", "text", "label"} <= set(entries[0][1])


def read(source: Source) -> Data:
    """Read one split per file, named by the word random, popular or adversarial in its name, or else by its stem.

    The released files number their questions anew in every split, so ids are split/question_id.

    Raises:
        ValueError: missing fields, or a label that is neither yes nor no.
    """
    samples = []
    for path in files(source):
        split = next((name for name in SPLITS if name in path.stem), path.stem)
        for number, (where, entry) in enumerate(load(path), start=1):
            label = need(entry, "label", where)
            if label.strip().lower() not in ("yes", "no"):
                raise ValueError(f"{where}: label is {label!r}, expected yes or no")
            image = need(entry, "image", where)
            samples.append(
                Sample(
                    id=f"{split}/{entry.get('question_id', number)}",
                    question=need(entry, "text", where),
                    kind="yes_no",
                    images=(source.locate(image, path),),
                    answer=label.strip().lower(),
                    category=split,
                    picture=image,
                    extra=rest(entry, USED),
                )
            )
    return Data(format=NAME, samples=tuple(samples))
