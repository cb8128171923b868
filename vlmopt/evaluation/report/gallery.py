"""Samples that a policy answers otherwise than dense: the picture, what was kept of it, both answers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...media import load_image
from ..records import DENSE, Record
from .facts import Facts, count
from .markup import Markup, join, tag
from .shown import clicks, embedded, kept_picture
from .tables import marker

CARDS = 40  # samples shown at most
FIGURES = 160  # and pictures, which are what makes a page heavy


@dataclass(frozen=True)
class Changed:
    """A sample with dense's answer and those that differ from it."""

    dense: Record
    others: tuple[Record, ...]


def changed(facts: Facts) -> list[Changed]:
    """All samples with another answer, in the order of the data; failures are not answers."""
    dense = {r.id: r for r in facts.records if r.policy == DENSE and r.error is None}
    others: dict[str, list[Record]] = {}
    for record in facts.records:
        own = dense.get(record.id)
        if own and record.error is None and record.prediction != own.prediction and record.policy in facts.policies:
            others.setdefault(record.id, []).append(record)
    return [Changed(dense[name], tuple(rows)) for name, rows in others.items()]


def chosen(samples: Sequence[Changed], policies: Sequence[str]) -> list[Changed]:
    """Policies take turns, each with its next sample, those with a map and with another mark first.

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
    """better, worse, or other where both are as right, or nothing is marked."""
    own, before = _worth(record), _worth(dense)
    if own is None or before is None or own == before:
        return "other"
    return "better" if own > before else "worse"


def _worth(record: Record) -> float | None:
    if record.correct is not None:
        return float(record.correct)
    return -float(record.metrics["false"]) if "false" in record.metrics else None


def gallery(facts: Facts) -> Markup:
    """A card per sample, with what the page's script filters by."""
    samples = changed(facts)
    if not samples:
        return tag("p", "No policy changed an answer.")
    cards = chosen(samples, facts.policies)
    policies = [p for p in facts.policies if any(r.policy == p for s in cards for r in s.others)]
    groups = sorted({s.dense.category for s in cards} - {""})
    options = [_choice("Policy", "policy", policies)]
    kinds = {"worse": "worse than dense", "better": "better than dense", "other": "neither"}
    options.append(_choice("Answer", "outcome", list(kinds), kinds))
    if len(groups) > 1:
        options.append(_choice("Category", "category", groups))
    some = f"{len(cards)} of them are shown, the policies in turn. " if len(cards) < len(samples) else ""
    note = f"{len(samples)} of {facts.summary['samples']} samples have another answer under some policy. {some}"
    legend = tag(
        "p", tag("span", "", css="key kept"), "kept", tag("span", "", css="key dropped"), "dropped",
        tag("span", "", css="key merged"), "marker or merged token", css="legend",
    )  # fmt: skip
    shown = tag("p", f"{len(cards)} samples", css="count", role="status", id="count")
    made = tag("div", *(card(facts, sample) for sample in cards), css="cards")
    more = tag("button", "Show more", id="more", type="button", hidden=True)
    return join(tag("p", note), tag("div", *options, shown, css="choices scripted"), legend, made, more)


def _choice(label: str, name: str, values: Sequence[str], titles: dict[str, str] | None = None) -> Markup:
    options = [tag("option", "all", value="")]
    options += [tag("option", (titles or {}).get(v, v), value=v) for v in values]
    return tag("label", label, tag("select", *options, data_filter=name))


def card(facts: Facts, sample: Changed) -> Markup:
    """The question, then dense's answer below the picture and every other answer below what was kept."""
    dense = sample.dense
    facts_line = " · ".join(filter(None, (dense.id, dense.category, dense.kind.replace("_", "/"))))
    wanted = reference(dense)
    figures = [_dense(facts, sample), *(_other(facts, record, dense) for record in sample.others)]
    return tag(
        "article",
        tag("p", facts_line, css="id"),
        tag("h3", dense.question),
        tag("p", "Right answer: ", tag("b", wanted)) if wanted else None,
        tag("div", *figures, css="figures"),
        css="card",
        data_category=dense.category,
    )


def reference(record: Record) -> str:
    if record.answer is not None:
        return record.answer if isinstance(record.answer, str) else " / ".join(record.answer)
    if record.extra.get("box"):
        return "a point in the box"
    return ", ".join(record.extra.get("objects", ()))


def _dense(facts: Facts, sample: Changed) -> Markup:
    dense, seen = sample.dense, next((r.seen for r in sample.others if r.seen), None)
    alt = f"Picture of sample {dense.id}"
    if dense.extra.get("box"):
        alt += ", with the target box and the points that were named"
    shown, why = None, "no single picture"
    for name in filter(None, (dense.image, seen)):
        try:
            picture = load_image(facts.run / name).image  # upright, as the box and the clicks are
        except (OSError, ValueError) as error:
            why = f"the picture cannot be read ({error})"
        else:
            drawn = clicks(picture, facts, dense, sample.others) if name == dense.image else picture
            shown = embedded(drawn, alt)
            break
    return tag(
        "figure",
        shown or tag("div", why, css="missing"),
        tag("figcaption", marker(facts, DENSE), verdict(dense), kept_of(dense)),
        tag("p", dense.prediction or "(nothing)", css="said"),
        css="dense",
    )


def _other(facts: Facts, record: Record, dense: Record) -> Markup:
    shown: Markup | None = None
    why = "no map was saved"
    kept = kept_of(record)
    if record.map:
        alt = f"Kept tokens of sample {record.id} under {record.policy}"
        try:
            shown = embedded(kept_picture(facts, record), alt)
        except (OSError, ValueError, KeyError) as error:  # lost, cut off, or no such archive
            why = f"the map cannot be read ({error})"
    became = outcome(record, dense)
    return tag(
        "figure",
        shown or tag("div", why, css="missing"),
        tag("figcaption", marker(facts, record.policy), verdict(record), kept),
        tag("p", *differing(dense.prediction or "", record.prediction or "(nothing)"), css="said"),
        data_policy=record.policy,
        data_outcome=became,
    )


def kept_of(record: Record) -> Markup | None:
    if not record.tokens:
        return None
    kept, visual = count(record.tokens["kept"]), count(record.tokens["visual"])
    return tag("small", f"all {visual} visual tokens" if kept == visual else f"{kept} of {visual} visual tokens")


def verdict(record: Record) -> Markup | None:
    if isinstance(record.correct, bool):
        return tag("span", "✓ right" if record.correct else "✗ wrong", css="good" if record.correct else "bad")
    if record.correct is not None:
        return tag("span", f"{100 * record.correct:.0f} % right", css="even")
    if "false" in record.metrics:
        false = int(record.metrics["false"])
        text = f"✗ {false} object{'' if false == 1 else 's'} not there" if false else "✓ no false object"
        return tag("span", text, css="bad" if false else "good")
    return None


def differing(before: str, after: str) -> Iterator[str]:
    """The second text, its words that the first does not have there marked; short answers are left plain."""
    old, new = (re.findall(r"\s+|[^\s]+", text) for text in (before, after))
    if len(new) < 6:
        yield after
        return
    for what, _, _, start, end in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        piece = "".join(new[start:end])
        yield tag("mark", piece) if what != "equal" and piece.strip() else piece
