"""DocVQA, ChartQA and TextVQA: questions about documents, charts and signs, with the scorer of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...metrics.answers import anls
from ..data import Data, Sample, Source
from .files import Entry, files, load, need

NAME = "documents"
HELP = "JSON of DocVQA or TextVQA (data with questions and answers) or of ChartQA (imgname, query, label)"
SHORT = "{question}\nAnswer the question using a single word or phrase."


def recognises(entries: Sequence[Entry]) -> bool:
    if not entries:
        return False
    first = entries[0][1]
    return isinstance(first.get("data"), list) or {"imgname", "query", "label"} <= set(first)


def read(source: Source) -> Data:
    """Read questions: DocVQA by ANLS, ChartQA by relaxed accuracy, TextVQA by VQA accuracy.

    DocVQA (arXiv 2007.00398) names its images in `image`, TextVQA (1904.08920) by `image_id`, ChartQA (2203.10244) by
    `imgname`. Questions without an answer (test splits) are open. Groups are the types of DocVQA's questions.

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
    if "imgname" in row:
        kind, image, question = "relaxed", need(row, "imgname", where), need(row, "query", where)
        answers, number, category = _texts(row.get("label"), where), row.get("id"), ""
    elif "image_id" in row and "image" not in row:
        kind, image, question = "vqa", f"{need(row, 'image_id', where)}.jpg", need(row, "question", where)
        answers, number, category = _texts(row.get("answers"), where), row.get("question_id"), ""
    else:
        kind, image, question = "anls", need(row, "image", where), need(row, "question", where)
        answers, number, category = _texts(row.get("answers"), where), row.get("questionId"), ""
    types = row.get("question_types") or ()
    return Sample(
        id=f"{path.stem}/{where.rpartition(' ')[2] if number is None else number}",
        question=question,
        kind=kind if answers else "open",
        images=(source.locate(image, path),),
        answer=answers or None,
        category=category,
        picture=image,
        extra={"groups": [str(one) for one in types]},
    )


def _texts(value: Any, where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(one, (str, int, float)) and not isinstance(one, bool) for one in values):
        raise ValueError(f"{where}: the answers are {value!r}, expected texts")
    return tuple(map(str, values))
