"""DocVQA, ChartQA and TextVQA: questions about documents, charts and signs, with the scorer of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...metrics.answers import anls
from ..data import Data, Sample, Source
from .files import Entry, files, load, need

NAME = "documents"
HELP = "DocVQA or TextVQA (JSON with a list data, or parquet), or ChartQA (imgname or image, query, label)"
SHORT = "{question}\nAnswer the question using a single word or phrase."


def recognises(entries: Sequence[Entry]) -> bool:
    if not entries:
        return False
    first = entries[0][1]
    columns = ({"query", "label"}, {"questionId", "question", "image"}, {"image_id", "question_id", "question"})
    return isinstance(first.get("data"), list) or any(own <= set(first) for own in columns)


def read(source: Source) -> Data:
    """Read questions: DocVQA by ANLS, ChartQA by relaxed accuracy, TextVQA by VQA accuracy.

    DocVQA (arXiv 2007.00398) names its images in `image`, TextVQA (1904.08920) by `image_id`, ChartQA (2203.10244) by
    `imgname`; parquet files have them inside, in `image`. Questions without an answer (test splits) are open. Groups
    are the types of DocVQA's questions.

    Raises:
        ValueError: fields that are missing or of another type.
    """
    samples = [_sample(row, where, path, source) for path in files(source) for where, row in rows(path)]
    if any(sample.kind == "anls" for sample in samples):
        anls("", ("",))  # refused here where the package is missing, not after hours
    return Data(format=NAME, samples=tuple(samples), prompt=SHORT)


def rows(path: Path) -> list[Entry]:
    """Return the questions of a file, whose list may lie under `data`."""
    found: list[Entry] = []
    for where, entry in load(path):
        inside = entry.get("data")
        if not isinstance(inside, list):
            found.append((where, entry))
            continue
        for number, row in enumerate(inside, start=1):
            if not isinstance(row, dict):
                raise ValueError(f"{path}, data {number} is a {type(row).__name__}, expected an object with fields")
            found.append((f"{path}, data {number}", row))
    return found


def _sample(row: Mapping[str, Any], where: str, path: Path, source: Source) -> Sample:
    if "query" in row:
        kind, number = "relaxed", row.get("id")
        question, answers = need(row, "query", where), _texts(row.get("label"), where)
        image = need(row, "image" if "image" in row else "imgname", where)
    else:
        kind, number = ("vqa", row.get("question_id")) if "image_id" in row else ("anls", row.get("questionId"))
        question, answers = need(row, "question", where), _texts(row.get("answers"), where)
        inside = "image" in row or kind == "anls"
        image = need(row, "image", where) if inside else f"{need(row, 'image_id', where)}.jpg"
    types = row.get("question_types") or ()
    return Sample(
        id=f"{path.stem}/{where.rpartition(' ')[2] if number is None else number}",
        question=question,
        kind=kind if answers else "open",
        images=(source.locate(image, path),),
        answer=answers or None,
        picture=image,
        extra={"groups": [str(one) for one in types]},
    )


def _texts(value: Any, where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(one, (str, int, float)) and not isinstance(one, bool) for one in values):
        raise ValueError(f"{where}: the answers are {value!r}, expected texts")
    return tuple(map(str, values))
