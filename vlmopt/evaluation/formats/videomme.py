"""Video-MME (arXiv 2405.21075): multiple choice about videos, each a file named by its id."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...metrics.answers import LETTERS, in_words
from ..data import Data, Sample, Source
from .files import Entry, files, load, need

NAME = "videomme"
HELP = "JSON lines or parquet with videoID, question, options, answer"
LETTER = re.compile(r"^\s*\(?[A-Z][.):]\s*")


def recognises(entries: Sequence[Entry]) -> bool:
    return bool(entries) and {"videoID", "question", "options", "answer"} <= set(entries[0][1])


def read(source: Source) -> Data:
    """Read questions about `<videoID>.mp4`; the category is the duration, groups are domain and type of task.

    Raises:
        ValueError: missing fields, fewer than two options, or an answer that is none of their letters.
    """
    samples = []
    for path in files(source):
        for number, (where, entry) in enumerate(load(path), start=1):
            options = [LETTER.sub("", text) for text in need(entry, "options", where, list)]
            answer = need(entry, "answer", where).strip().upper()
            if len(options) < 2 or answer not in LETTERS[: len(options)]:
                raise ValueError(f"{where}: the answer {answer!r} is no letter of {len(options)} options")
            video = f"{need(entry, 'videoID', where)}.mp4"
            groups = [f"{name} {entry[name]}" for name in ("domain", "task_type") if entry.get(name)]
            samples.append(
                Sample(
                    id=str(entry.get("question_id") or f"{path.stem}/{number}"),
                    question=need(entry, "question", where),
                    kind="choice",
                    video=source.locate(video, path),
                    answer=in_words(answer, options),
                    category=str(entry.get("duration") or ""),
                    choices=tuple(options),
                    picture=video,
                    extra={"groups": groups},
                )
            )
    return Data(format=NAME, samples=tuple(samples))
