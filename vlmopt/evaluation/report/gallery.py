"""Samples that a policy answers otherwise than dense: the image, what was kept of it, both answers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from ...media import load_image
from ..records import DENSE, Record
from .facts import Facts
from .numbers import count
from .shown import Embedded, clicks, embedded, kept_image

CARDS = 40  # samples shown at most
FIGURES = 160  # and images, which are what makes a page heavy


OUTCOMES = {"worse": "worse than dense", "better": "better than dense", "other": "neither"}
MARK = Markup("<mark>{}</mark>")


@dataclass(frozen=True)
class Changed:
    """A sample with dense's answer and those that differ from it."""

    dense: Record
    others: tuple[Record, ...]


class Option(NamedTuple):
    """One choice of the page's script: what it filters by, and its label."""

    name: str
    title: str


class Verdict(NamedTuple):
    """The mark of an answer in words, and the style class that colours it."""

    css: str
    text: str


@dataclass(frozen=True)
class Answer:
    """One answer on a card: what was kept, or why that cannot be shown, and what was said, in pieces."""

    record: Record
    outcome: str  # "" for dense's own
    image: Embedded | None
    why: str
    said: Sequence[str]

    @property
    def verdict(self) -> Verdict | None:
        return verdict(self.record)

    @property
    def kept(self) -> str:
        return kept_of(self.record)


class Card(NamedTuple):
    """A sample: the question, then dense's answer and every other one."""

    dense: Record
    facts: str
    wanted: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Gallery:
    """`count` samples changed; choices are (label, name, options)."""

    count: int
    choices: Sequence[tuple[str, str, Sequence[Option]]]
    cards: Sequence[Card]


def changed(facts: Facts) -> list[Changed]:
    """Return all samples with another answer, in the order of the data; failures are not answers."""
    dense = {r.id: r for r in facts.records if r.policy == DENSE and r.error is None}
    others: dict[str, list[Record]] = {}
    for record in facts.records:
        own = dense.get(record.id)
        if own and record.error is None and record.prediction != own.prediction and record.policy in facts.policies:
            others.setdefault(record.id, []).append(record)
    return [Changed(dense[name], tuple(rows)) for name, rows in others.items()]


def chosen(samples: Sequence[Changed], policies: Sequence[str]) -> list[Changed]:
    """Choose samples in turn for each policy, those with a map and with another mark first.

    Returns:
        Those with another mark, then the others, in the order of the data.
    """
    queues = {
        policy: sorted(
            (s for s in samples if any(r.policy == policy for r in s.others)),
            key=lambda s, policy=policy: _interest(s, policy),  # type: ignore[misc]
        )
        for policy in policies
    }
    taken: dict[str, Changed] = {}
    figures = 0
    for turn in range(max(map(len, queues.values()), default=0)):
        for queue in queues.values():
            if turn < len(queue) and queue[turn].dense.id not in taken:
                figures += 1 + len(queue[turn].others)
                if len(taken) == CARDS or (taken and figures > FIGURES):
                    return sorted(taken.values(), key=_order)
                taken[queue[turn].dense.id] = queue[turn]
    return sorted(taken.values(), key=_order)


def _interest(sample: Changed, policy: str) -> tuple[bool, bool]:
    own = next(r for r in sample.others if r.policy == policy)
    return own.map is None, outcome(own, sample.dense) == "other"


def _order(sample: Changed) -> tuple[bool, int]:
    return all(outcome(r, sample.dense) == "other" for r in sample.others), sample.dense.index


def outcome(record: Record, dense: Record) -> str:
    """Return better, worse, or other (both are as right, or nothing is marked)."""
    own, before = _worth(record), _worth(dense)
    if own is None or before is None or own == before:
        return "other"
    return "better" if own > before else "worse"


def _worth(record: Record) -> float | None:
    if record.correct is not None:
        return float(record.correct)
    return -float(record.metrics["false"]) if "false" in record.metrics else None


def gallery(facts: Facts) -> Gallery | None:
    """Make the cards, and what the page's script filters by; None where no answer changed."""
    samples = changed(facts)
    if not samples:
        return None
    cards = chosen(samples, facts.policies)
    policies = [p for p in facts.policies if any(r.policy == p for s in cards for r in s.others)]
    groups = sorted({s.dense.category for s in cards} - {""})
    choices = [
        ("Policy", "policy", [Option(policy, policy) for policy in policies]),
        ("Answer", "outcome", [Option(name, title) for name, title in OUTCOMES.items()]),
    ]
    if len(groups) > 1:
        choices.append(("Category", "category", [Option(group, group) for group in groups]))
    return Gallery(len(samples), choices, [card(facts, sample) for sample in cards])


def card(facts: Facts, sample: Changed) -> Card:
    dense = sample.dense
    line = " · ".join(filter(None, (dense.id, dense.category, dense.kind.replace("_", "/"))))
    answers = [_dense(facts, sample), *(_other(facts, record, dense) for record in sample.others)]
    return Card(dense, line, reference(dense), answers)


def reference(record: Record) -> str:
    if record.answer is not None:
        return record.answer if isinstance(record.answer, str) else " / ".join(record.answer)
    if record.extra.get("box"):
        return "a point in the box"
    return ", ".join(record.extra.get("objects", ()))


def _dense(facts: Facts, sample: Changed) -> Answer:
    dense, seen = sample.dense, next((r.seen for r in sample.others if r.seen), None)
    alt = f"Image of sample {dense.id}"
    if dense.extra.get("box"):
        alt += ", with the target box and the points that were named"
    shown, why = None, "no single image"
    for name in filter(None, (dense.image, seen)):
        try:
            original = load_image(facts.run / name).image  # upright, as the box and the clicks are
        except (OSError, ValueError) as error:
            why = f"the image cannot be read ({error})"
        else:
            drawn = clicks(original, facts, dense, sample.others) if name == dense.image else original
            shown = embedded(drawn, alt)
            break
    return Answer(dense, "", shown, why, [dense.prediction or "(nothing)"])


def _other(facts: Facts, record: Record, dense: Record) -> Answer:
    shown, why = None, "no map was saved"
    if record.map:
        alt = f"Kept tokens of sample {record.id} under {record.policy}"
        try:
            shown = embedded(kept_image(facts, record), alt)
        except (OSError, ValueError, KeyError) as error:  # lost, cut off, or no such archive
            why = f"the map cannot be read ({error})"
    said = list(differing(dense.prediction or "", record.prediction or "(nothing)"))
    return Answer(record, outcome(record, dense), shown, why, said)


def kept_of(record: Record) -> str:
    if not record.tokens:
        return ""
    kept, visual = count(record.tokens["kept"]), count(record.tokens["visual"])
    return f"all {visual} visual tokens" if kept == visual else f"{kept} of {visual} visual tokens"


def verdict(record: Record) -> Verdict | None:
    if isinstance(record.correct, bool):
        return Verdict("good", "✓ right") if record.correct else Verdict("bad", "✗ wrong")
    if record.correct is not None:
        return Verdict("even", f"{100 * record.correct:.0f} % right")
    if "false" in record.metrics:
        false = int(record.metrics["false"])
        if false:
            return Verdict("bad", f"✗ {false} object{'' if false == 1 else 's'} not there")
        return Verdict("good", "✓ no false object")
    return None


def differing(before: str, after: str) -> Iterator[str]:
    """Yield the second text with the words marked that the first does not have there; short answers are left plain."""
    old, new = (re.findall(r"\s+|[^\s]+", text) for text in (before, after))
    if len(new) < 6:
        yield after
        return
    for what, _, _, start, end in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        piece = "".join(new[start:end])
        yield MARK.format(piece) if what != "equal" and piece.strip() else piece
