"""The files of VLMEvalKit: MMBench, MMStar, MMMU and their like, a question a row with its image in base64."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...metrics.answers import LETTERS, in_words
from ..data import Data, Sample, Source
from ..packed import Packed
from .files import Entry, files, load, need

NAME = "tsv"
HELP = "tab-separated rows with index, question, image or image_path, A, B, C, ..., answer, category"
REFERENCE = 64  # a cell no longer than this is the index of the row whose image it shares
NOTHING = ("", "nan", "none")


def recognises(entries: Sequence[Entry]) -> bool:
    fields = set(entries[0][1]) if entries else set()
    return {"index", "question"} <= fields and not fields.isdisjoint(("image", "image_path"))


def read(source: Source) -> Data:
    """Read rows as plain accuracy marks them; MMBench's circular evaluation, which asks all rotations, is not built in.

    Two or more options make a multiple choice, yes or no a yes_no, another answer an exact match, none an open
    question. A hint stands before the question; images stand where it or an option says `<image 1>` (MMMU), else before
    it. Groups are `l2-category` and `split`.

    Raises:
        ValueError: fields that are missing, an answer that is none of the options, or an image that cannot be found.
    """
    samples = []
    for path in files(source):
        rows = load(path)
        cells = {str(row.get("index")): str(row.get("image") or "") for _, row in rows}
        samples += [_sample(row, where, path, source, cells) for where, row in rows]
    return Data(format=NAME, samples=tuple(samples))


def _sample(row: Mapping[str, Any], where: str, path: Path, source: Source, cells: Mapping[str, str]) -> Sample:
    options = [text for letter in LETTERS if (text := told(row, letter))]
    answer, question = told(row, "answer"), need(row, "question", where)
    if options and answer.upper() not in LETTERS[: len(options)] and len(options) > 1:
        raise ValueError(f"{where}: the answer {answer!r} is none of the letters {', '.join(LETTERS[: len(options)])}")
    short = answer.casefold() in ("yes", "no")
    kind = "choice" if len(options) > 1 else "yes_no" if short else "exact" if answer else "open"
    images = _images(row, where, cells)
    return Sample(
        id=f"{path.stem}/{need(row, 'index', where, (str, int))}",
        question="\n".join(filter(None, (told(row, "hint"), question))),
        kind=kind,
        images=tuple(source.locate(image, path) for image in images),
        answer=in_words(answer.upper(), options)
        if kind == "choice"
        else answer.casefold()
        if short
        else answer or None,
        category=told(row, "category"),
        choices=tuple(options) if kind == "choice" else (),
        picture=images[0],
        extra={
            "groups": [
                f"{name} {text}" for name in ("l2-category", "l2_category", "split") if (text := told(row, name))
            ]
        },
    )


def _images(row: Mapping[str, Any], where: str, cells: Mapping[str, str]) -> list[str]:
    """Return the images of a row: inside of it, of the row that it points to, or by their paths."""
    if isinstance(row.get("image"), Packed):  # of parquet
        return [row["image"]]
    cell = cells.get(str(row.get("index")), "")
    if 0 < len(cell) <= REFERENCE:
        if cell not in cells or len(cells[cell]) <= REFERENCE:
            raise ValueError(f"{where}: image is {cell!r}, but no row of that index has one")
        cell = cells[cell]
    inside = listed(cell)
    if inside:
        return [Packed.base64(text, where) for text in inside]
    paths = listed(told(row, "image_path"))
    if not paths:
        raise ValueError(f"{where}: there is neither an image nor an image_path")
    return paths


def listed(text: str) -> list[str]:
    """Return the texts of a list that is written as in Python, or the one text."""
    if not text.startswith("["):
        return [text] if text else []
    return [str(one) for one in ast.literal_eval(text)]


def told(row: Mapping[str, Any], name: str) -> str:
    """Return a cell as text; "" for what pandas writes where there is nothing."""
    text = str(row.get(name) or "").strip()
    return "" if text.casefold() in NOTHING else text
