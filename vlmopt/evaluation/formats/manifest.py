"""The simple manifest for the user's own data: JSON lines with id, image or video, question, answer, category."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core import near
from ...metrics import Lexicon, coco_lexicon, load_synonyms, phrases
from ...metrics.answers import anls, choice, right_choice
from ...synthetic.questions import SCENE_KINDS, SCREEN_KINDS
from ..boxes import convention, four_numbers, with_boxes
from ..data import KINDS, Data, Sample, Source
from .columns import ALIASES
from .files import Entry, files, load, need, refuse_unknown

NAME = "manifest"
HELP = "JSON lines with id, image or video, question, answer, category"
FIELDS = ("id", "image", "video", "question", "answer", "category", "kind", "choices", "box", "objects")
# What `vlmopt worlds` calls its questions, and how they are marked.
WORLD_KINDS = dict.fromkeys((*SCENE_KINDS, *SCREEN_KINDS), "exact") | {
    "presence": "yes_no", "click": "click", "point": "click",
}  # fmt: skip


def recognises(entries: Sequence[Entry]) -> bool:
    return bool(entries) and "question" in entries[0][1]


def read(source: Source) -> Data:
    """Read a manifest; fields beyond `FIELDS` are refused.

    Without `id`, a sample is named by its file and its place there. `image` and `video` are one name or a list,
    `answer` one text, a list of accepted ones, or missing, `kind` one of `data.KINDS`.
    Without `kind`, a box makes a click, choices a multiple choice, objects a caption, yes or no a yes_no, no answer an
    open question, and anything else is compared word for word.

    Raises:
        ValueError: fields unknown, missing or of the wrong type; boxes without a convention or with a wrong one.
    """
    samples: list[Sample] = []
    raw: list[list[float] | None] = []
    for path in files(source):
        for number, (where, entry) in enumerate(load(path), start=1):
            if path.suffix == ".parquet" or path.is_dir():  # of a public data set, whose further columns are its own
                entry = known(entry)
            refuse_unknown(entry, FIELDS, where)
            sample = _sample({"id": f"{path.stem}/{number}", **entry}, where, path, source)
            samples.append(sample)
            raw.append(_raw_box(entry, sample.kind, where))
    if any(raw):
        samples = with_boxes(samples, raw, convention(source.boxes, source.data[0]), source.run)
    if any(sample.kind == "anls" for sample in samples):
        anls("", ("",))  # refused here where the package is missing, not after hours
    return Data(format=NAME, samples=tuple(samples), lexicon=_lexicon(samples, source))


def known(row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that a manifest has, under the names that it has for them."""
    named = {ALIASES.get(name, name) if ALIASES.get(name) not in row else name: cell for name, cell in row.items()}
    return {name: cell for name, cell in named.items() if name in FIELDS}


def _lexicon(samples: Sequence[Sample], source: Source) -> Lexicon | None:
    """Return the user's own table; else COCO's names where they cover the objects, else just the objects' names."""
    objects = {name for sample in samples for name in sample.objects or ()}
    if not objects:
        return None
    if source.synonyms is None:
        common = coco_lexicon()
        return common if objects <= set(common.names.values()) else phrases(sorted(objects), "names of the objects")
    own = load_synonyms(source.synonyms)
    if strange := sorted(objects - set(own.names.values())):
        raise ValueError(f"{source.synonyms} does not know the objects {strange[:5]}; add a line for each")
    return own


def _sample(entry: dict[str, Any], where: str, path: Path, source: Source) -> Sample:
    images = _texts(entry, "image", where)
    videos = _texts(entry, "video", where)
    if images and videos:
        raise ValueError(f"{where}: give image or video, and not both")
    if not images and not videos:
        raise ValueError(f"{where}: there is neither image nor video; the fields are {', '.join(entry)}")
    kind, category = _kind(entry, where)
    answers = _texts(entry, "answer", where)
    if kind == "yes_no" and not (len(answers) == 1 and answers[0].strip().lower() in ("yes", "no")):
        raise ValueError(f"{where}: answer is {entry.get('answer')!r}, but the kind yes_no needs yes or no")
    if kind == "yes_no":
        answers = (answers[0].strip().lower(),)
    if kind in ("choice", "exact", "anls") and not answers:
        raise ValueError(f"{where}: the kind {kind} needs an answer to compare with")
    choices = _texts(entry, "choices", where)
    try:
        if kind == "choice":
            choice("", choices)
            right_choice(answers, choices)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    name = str(need(entry, "id", where, (str, int)))
    located = tuple(source.locate(video, path) for video in videos)
    return Sample(
        id=name,
        question=need(entry, "question", where),
        kind=kind,
        images=tuple(source.locate(image, path) for image in images),
        video=located[0] if len(located) == 1 else located or None,
        answer=answers[0] if len(answers) == 1 else answers or None,
        category=category,
        choices=choices,
        objects=_texts(entry, "objects", where) if entry.get("objects") is not None else None,
        picture=(images or videos)[0],
    )


def _kind(entry: dict[str, Any], where: str) -> tuple[str, str]:
    """Return (kind, category)."""
    kind, category = entry.get("kind"), str(entry.get("category") or "")
    if kind is None:
        answers = _texts(entry, "answer", where)
        short = len(answers) == 1 and answers[0].strip().lower() in ("yes", "no")
        found = [
            ("click", entry.get("box") is not None),
            ("choice", bool(entry.get("choices"))),
            ("caption", entry.get("objects") is not None),
            ("yes_no", short),
            ("open", not answers),
        ]
        return next((name for name, yes in found if yes), "exact"), category
    if kind in WORLD_KINDS:
        return WORLD_KINDS[kind], category or kind
    if kind in KINDS:
        return kind, category
    hint = near(str(kind), list(KINDS))
    raise ValueError(f"{where}: kind {kind!r} is unknown{hint}; the kinds are {', '.join(KINDS)}")


def _raw_box(entry: dict[str, Any], kind: str, where: str) -> list[float] | None:
    if kind != "click":  # generated questions of other kinds say where their object is, too
        return None
    numbers = four_numbers(entry.get("box"))
    if numbers is None:
        raise ValueError(f"{where}: box is {entry.get('box')!r}, but the kind click needs four numbers")
    return numbers


def _texts(entry: dict[str, Any], name: str, where: str) -> tuple[str, ...]:
    """Return a text, a number or a list of these as texts."""
    value = entry.get(name)
    values = [] if value is None or value == "" else value if isinstance(value, list) else [value]
    if not all(isinstance(v, (str, int, float)) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{where}: {name} is {value!r}, expected a text or a list of texts")
    return tuple(value if isinstance(value, str) else str(value) for value in values)
