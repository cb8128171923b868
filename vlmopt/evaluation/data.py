"""Samples: what is asked, about which picture, and what would be right. One reader per format lies in `formats/`."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from ..metrics import Lexicon

KINDS = ("yes_no", "caption", "click", "choice", "exact", "anls", "open")
# New tokens an answer may have, unless the user says otherwise; captions as in most CHAIR tables.
NEW_TOKENS = {"yes_no": 16, "caption": 512, "click": 64, "choice": 16, "exact": 32, "anls": 64, "open": 256}
SHOWN = 3  # examples in a message

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the picture, edges included


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question.

    Attributes:
        id: unique in the data.
        question: as the data has it, before the prompt template.
        kind: how the answer is marked, one of `KINDS`.
        images, video: absolute paths, or relative to the run directory; several images come before the question.
        answer: the right one, several accepted ones, or None.
        category: for the tables.
        choices: of a multiple choice, without letters.
        box: where a click is right.
        objects: canonical names of what the picture shows, for captions.
        picture: samples of one picture are resampled together.
        extra: what else the data said; goes into the record.
        written: the box as the data has it; `box` is known only where the picture can be read.
        error: why it cannot be asked.
    """

    id: str
    question: str
    kind: str
    images: tuple[str, ...] = ()
    video: str | None = None
    answer: str | tuple[str, ...] | None = None
    category: str = ""
    choices: tuple[str, ...] = ()
    box: Box | None = None
    objects: tuple[str, ...] | None = None
    picture: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    written: tuple[str | float, ...] = ()
    error: str | None = None

    @property
    def references(self) -> tuple[str, ...]:
        """The accepted answers."""
        return () if self.answer is None else (self.answer,) if isinstance(self.answer, str) else self.answer


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where data comes from, as the user said it.

    Attributes:
        data: files or directories, or the name of generated worlds.
        format: None to tell from the contents.
        images: directory of the pictures; None for that of the data file.
        boxes: convention of the boxes in the files (`boxes.CONVENTIONS`).
        synonyms: a table for CHAIR of the user's own.
        limit: how many samples; a seeded choice, kept in order, spread over pictures.
        model_type: generated pictures have the sizes that suit the model.
        run: the run directory, where generated pictures are put.
    """

    data: Sequence[str]
    run: Path
    format: str | None = None
    images: str | None = None
    boxes: str | None = None
    synonyms: str | None = None
    limit: int | None = None
    seed: int = 0
    model_type: str = ""

    def picture(self, name: str, beside: Path) -> str:
        """Absolute path of a picture that a data file names."""
        return str((Path(self.images) if self.images else beside.parent).joinpath(name).absolute())


@dataclass(frozen=True, kw_only=True)
class Data:
    """Samples with what marking them needs; `stops` part the sentences of captions; `prompt` is the usual template."""

    format: str
    samples: tuple[Sample, ...]
    lexicon: Lexicon | None = None
    stops: str = ".!?"
    prompt: str = "{question}"
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Changes with anything that a sample says; not with whether its picture is there, which may be put right."""
        told = [asdict(replace(s, error=None, box=None if s.written else s.box)) for s in self.samples]
        text = json.dumps(told, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_data(source: Source) -> Data:
    """Read data, and refuse what cannot be right as a whole; single bad samples keep their place with an `error`.

    Raises:
        ValueError: no such data, unknown format or fields, missing fields, ids given twice, a box convention that does
            not fit the pictures, no picture found at all.
        OSError: a file cannot be read.
    """
    from .formats import reader

    if source.limit is not None and source.limit < 1:
        raise ValueError(f"--limit must be 1 or more, got {source.limit}")
    data = reader(source)(source)
    if not data.samples:
        raise ValueError(f"{' '.join(source.data)} holds no samples")
    check_ids(data.samples)
    samples = chosen(data.samples, source.limit, source.seed)
    return check_files(replace(data, samples=tuple(samples)), source)


def chosen(samples: Sequence[Sample], limit: int | None, seed: int) -> Sequence[Sample]:
    """A seeded choice of `limit` samples in their order, spread over pictures: a second question about one comes only
    when every picture has its first.
    """
    if limit is None or limit >= len(samples):
        return samples
    draw = random.Random(f"limit/{seed}")
    places: dict[str, list[int]] = {}
    for place in draw.sample(range(len(samples)), len(samples)):
        places.setdefault(samples[place].picture or samples[place].id, []).append(place)
    rounds = zip_longest(*places.values())  # pictures in the order of their first question drawn
    taken = islice((place for turn in rounds for place in turn if place is not None), limit)
    return [samples[place] for place in sorted(taken)]


def check_ids(samples: Sequence[Sample]) -> None:
    twice = [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} ids are given more than once ({', '.join(map(repr, twice[:SHOWN]))}"
            f"{', ...' if len(twice) > SHOWN else ''}): every sample needs an id of its own"
        )


def check_files(data: Data, source: Source) -> Data:
    """Mark samples whose pictures are missing; none at all means that the directory is wrong."""
    known: dict[str, bool] = {}

    def missing(sample: Sample) -> list[str]:
        files = [*sample.images, *([sample.video] if sample.video else [])]  # names may be too long for Path
        return [file for file in files if not known.setdefault(file, os.path.isfile(source.run / file))]

    lost = {sample.id: missing(sample) for sample in data.samples}
    bad = [files[0] for files in lost.values() if files]
    if not bad:
        return data
    if not any(known.values()):
        raise ValueError(f"none of the pictures is there, e.g. {bad[0]}: name their directory with --images")
    samples = [
        replace(sample, error=f"picture not found: {lost[sample.id][0]}") if lost[sample.id] else sample
        for sample in data.samples
    ]
    note = f"{len(bad)} of {len(samples)} samples miss their picture, e.g. {bad[0]}: recorded as errors"
    return replace(data, samples=tuple(samples), notes=(*data.notes, note))
