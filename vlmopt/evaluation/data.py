"""Samples: what is asked, about which image, and what would be right. One reader per format lies in `formats/`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vlmopt.core import Configured

from ..metrics import Lexicon
from .packed import Packed

KINDS = ("yes_no", "caption", "click", "box", "choice", "exact", "anls", "relaxed", "vqa", "open")
# New tokens an answer may have, unless the user says otherwise; captions as in most CHAIR tables.
NEW_TOKENS = {
    "yes_no": 16, "caption": 512, "click": 64, "box": 64, "choice": 16, "exact": 32, "anls": 64, "relaxed": 32,
    "vqa": 32, "open": 256,
}  # fmt: skip

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the image, edges included


@dataclass(frozen=True, kw_only=True)
class Sample(Configured):
    """One question.

    Attributes:
        id: unique in the data.
        question: as the data has it, before the prompt template.
        kind: how the answer is marked, one of `KINDS`.
        images, video: absolute paths, or relative to the run directory; several, also of videos. They come before the
            question; images stand where it or a choice names them, `<image 1>` and on, if the chat template lets them.
        answer: the right one, several accepted ones, or None.
        category: for the tables.
        choices: of a multiple choice, without letters.
        box: where a click is right, or the box that is asked for.
        objects: canonical names of what the image shows, for captions.
        picture: samples of one image are resampled together.
        extra: what else the data said; goes into the record.
        written: the box as the data has it; `box` is known only where the image can be read.
        error: why it cannot be asked.
    """

    id: str
    question: str
    kind: str
    images: tuple[str, ...] = ()
    video: str | tuple[str, ...] | None = None
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
        return several(self.answer)

    @property
    def videos(self) -> tuple[str, ...]:
        return several(self.video)


def several(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class Source(Configured):
    """Where data comes from, as the user said it.

    Attributes:
        data: files or directories, or the name of generated worlds.
        format: None to tell from the contents.
        images: directory of the images; None for that of the data file.
        boxes: convention of the boxes in the files (`boxes.CONVENTIONS`).
        synonyms: a table for CHAIR of the user's own.
        limit: how many samples; a seeded choice, kept in order, spread over images.
        model_type: generated images have the sizes that suit the model.
        run: the run directory, where generated images are put, and those that lie inside of data files.
        packed: images inside of data files that were read so far, by their names in the run directory.
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
    packed: dict[str, Callable[[], bytes]] = field(default_factory=dict, compare=False, repr=False)

    def locate(self, name: str, beside: Path) -> str:
        """Return the absolute path of an image that a data file names, or the relative one of one inside of it."""
        if isinstance(name, Packed):
            self.packed[name] = name.content
            return str(name)
        return str((Path(self.images) if self.images else beside.parent).joinpath(name).absolute())


@dataclass(frozen=True, kw_only=True)
class Data(Configured):
    """Samples with what marking them needs; `stops` end the sentences of captions; `prompt` is the usual template."""

    format: str
    samples: tuple[Sample, ...]
    lexicon: Lexicon | None = None
    stops: str = ".!?"
    prompt: str = "{question}"
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """A hash of all that the samples say, but not of whether their images are there, which may be put right."""
        told = [asdict(replace(s, error=None, box=None if s.written else s.box)) for s in self.samples]
        text = json.dumps(told, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
