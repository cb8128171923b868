"""Mark single answers, by kind; the figures of a run are sums of these marks (`summary`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..metrics import Lexicon, chair, is_yes, text_state
from ..metrics.answers import anls, choice, exact, right_choice
from ..metrics.chair import COUNTS
from ..metrics.clicks import boxed, clicked, hits, iou
from ..metrics.lexicon import tokens
from ..metrics.short import relaxed, vqa
from ..metrics.stated import stated, without_reasoning
from .data import Sample

OVERLAP = 0.5  # intersection over union from which a box is the right one


@dataclass(frozen=True, kw_only=True)
class Marking:
    """How answers are read.

    Attributes:
        parser: of yes and no (`metrics.pope.PARSERS`). With "stated", ANLS and captions are marked without reasoning
            and markup, too; the others leave these to the rules of their sources, which read the words as they stand.
        units: of points (`choices.UNITS`).
        lexicon: of captions; None if there are none with known objects.
        stops: marks between the sentences of captions.
    """

    parser: str = "stated"
    units: str = "pixels"
    lexicon: Lexicon | None = None
    stops: str = ".!?"

    @property
    def stated(self) -> bool:
        return self.parser == "stated"

    def described(self) -> dict[str, str]:
        """Describe the marking in words, for the summary."""
        own = "what is stated in the end; " if self.stated else ""
        return {
            "yes_no": self.parser,
            "click": f"{self.units}; the middle of a box; edges included",
            "exact": "as it stands or stated in the end; small letters, single spaces, no full stop at the end",
            "choice": "what is stated in the end; letter, else words",
            "anls": f"{own}small letters, single spaces, 0 below one half",
            "relaxed": f"{own}numbers within 5 %",
            "vqa": f"{own}min(1, people who said so / 3), leaving one out",
            "box": f"{self.units}; intersection over union of one half or more",
            "caption": self.lexicon.source if self.lexicon else "no known objects",
        }


@dataclass(frozen=True, kw_only=True)
class Said:
    """An answer and what is needed to read it: sizes are (width, height)."""

    text: str
    ended: bool = True
    size: tuple[int, int] | None = None
    resized: tuple[int, int] | None = None


@dataclass(frozen=True)
class Mark:
    """The mark of one answer. `correct`: see `Record`; `extra` goes into the record's."""

    correct: bool | float | None
    metrics: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def grade(sample: Sample, said: Said | None, marking: Marking) -> Mark:
    """Mark an answer; None is a policy's failure, and wrong wherever something can be right."""
    return _GRADES[sample.kind](sample, said, marking)


def _yes_no(sample: Sample, said: Said | None, marking: Marking) -> Mark:
    """Mark yes and no, with `yes` (what the parser read) and `unparsable` (none stated, nor as the first word)."""
    if said is None:
        return Mark(False, {"yes": None, "unparsable": True})
    yes = is_yes(said.text, marking.parser)
    plain = yes if marking.stated else is_yes(said.text, "strict")
    return Mark(yes is (sample.answer == "yes"), {"yes": yes, "unparsable": plain is None})


def _click(sample: Sample, said: Said | None, marking: Marking) -> Mark:
    at = None if said is None or said.size is None else clicked(said.text, marking.units, said.size, said.resized)
    if at is None:
        return Mark(False, {"unparsable": True})
    x, y = at
    return Mark(sample.box is not None and hits((x, y), sample.box), {"unparsable": False}, {"point": [x, y]})


def _choice(sample: Sample, said: Said | None, marking: Marking) -> Mark:
    chosen = None if said is None else choice(said.text, sample.choices)
    right = right_choice(sample.references, sample.choices)
    return Mark(chosen == right, {"unparsable": chosen is None}, {"chosen": chosen})


def _exact(sample: Sample, said: Said | None, marking: Marking) -> Mark:
    return Mark(said is not None and exact(said.text, sample.references))


def _anls(sample: Sample, said: Said | None, marking: Marking) -> Mark:
    return Mark(max((anls(text, sample.references) for text in readings(said, marking)), default=0.0))


def _relaxed(sample: Sample, said: Said | None, marking: Marking) -> Mark:
    return Mark(any(relaxed(text, sample.references) for text in readings(said, marking)))


def _vqa(sample: Sample, said: Said | None, marking: Marking) -> Mark:
    return Mark(max((vqa(text, sample.references) for text in readings(said, marking)), default=0.0))


def _box(sample: Sample, said: Said | None, marking: Marking) -> Mark:
    """Mark a box by its intersection over union, which must be one half or more."""
    box = None if said is None or said.size is None else boxed(said.text, marking.units, said.size, said.resized)
    if box is None:
        return Mark(False, {"iou": 0.0, "unparsable": True})
    share = 0.0 if sample.box is None else iou(box, sample.box)
    middle = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
    return Mark(share >= OVERLAP, {"iou": share, "unparsable": False}, {"point": middle, "said_box": list(box)})


def readings(said: Said | None, marking: Marking) -> list[str]:
    """Return the answer as it stands, and what it states in the end where that is read."""
    return [] if said is None else [said.text, *([stated(said.text)] if marking.stated else [])]


def _caption(sample: Sample, said: Said | None, marking: Marking) -> Mark:
    """Return the counts of `metrics.chair.Chair` where the objects are known, and the state of the text."""
    if said is None:
        return Mark(None)
    text = without_reasoning(said.text) if marking.stated else said.text
    metrics: dict[str, Any] = {"words": len(tokens(text)), "cut_off": not said.ended}
    state, words = text_state([text], stops=marking.stops), metrics["words"]
    metrics |= {"distinct_1": state.distinct_1 if words >= 1 else None}
    metrics |= {"distinct_4": state.distinct_4 if words >= 4 else None, "repeated": state.repeated == 1.0}
    if "." in marking.stops:  # a bare list has no last mark
        metrics["unended"] = state.unended == 1.0
    if sample.objects is not None and marking.lexicon is not None:
        marks = chair([text], [sample.objects], marking.lexicon)
        metrics |= {name: int(getattr(marks, name)[0]) for name in COUNTS}
    return Mark(None, metrics)


def _open(sample: Sample, said: Said | None, marking: Marking) -> Mark:
    return Mark(None)


_GRADES = {
    "yes_no": _yes_no,
    "click": _click,
    "choice": _choice,
    "exact": _exact,
    "anls": _anls,
    "relaxed": _relaxed,
    "vqa": _vqa,
    "box": _box,
    "caption": _caption,
    "open": _open,
}
