"""POPE: is an object there? Parsers and the five figures, "yes" being positive.

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", arXiv 2305.10355.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .stated import stated

PARSERS: tuple[str, ...] = ("stated", "reference", "contractions", "strict")
DENIALS = frozenset({"No", "no", "not"})
SAYS = dict.fromkeys(("yes", "yeah", "yep", "true", "correct", "是", "是的", "有", "对"), True)
SAYS |= dict.fromkeys(("no", "nope", "false", "incorrect", "none", "否", "不", "不是", "没有"), False)
UNSURE = re.compile(
    r"\b(?:cannot|can't|can’t|can not|unable|unsure|uncertain|unclear|impossible|not sure|maybe|perhaps)\b"
)
DENIED = re.compile(r"\b(?:no|not|none|nothing|never|neither|without)\b|n['’]t\b")
# Of what was said to be there: "a dog without a collar", "a dog that is not moving".
LACKS = re.compile(
    r"\b(?:without|with no(?:thing|ne)?|(?:that|which|who)(?: is| are| has| does)?(?:n['’]t| not| no))\b"
)
SEEN = re.compile(
    r"\b(?:there(?:['’]s| is| are)|it(?:['’]s| is)|i (?:can )?see|"
    r"(?:image|picture|photo)\w* (?:shows?|contains?|includes?|has|depicts?|features?)|"
    r"(?:is|are) (?:\w+ )?(?:visible|present)|can be seen)\b|[,;:] ?yes\W*$"
)
ASKED = re.compile(r"\byes\s*(?:/|or)\s*no\b\W*")  # the question once more


@dataclass(frozen=True)
class Pope:
    """Fractions from 0 to 1; a ratio without a denominator is 0. `yes_ratio` is the share of *predicted* "yes"."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    unparsable: float = 0.0


def is_yes(answer: str, parser: str = "reference") -> bool | None:
    """Return what an answer says.

    Args:
        answer: the model's words.
        parser: "stated" reads what the answer states in the end (`metrics.stated`): its first word, or else a
            sentence that denies ("There is no dog") or affirms ("There is a dog"); others, as of the released scripts,
            read the words as they stand. "reference" is POPE's own: up to the first full stop, "No", "no" or "not"
            among the words is no and everything else yes, also `**No**`, "NO" and an empty answer; "contractions"
            takes words with "n't" for no too; "strict" wants the first word made of letters to be yes or no, in any
            case.

    Returns:
        True for yes, False for no, None where "stated" or "strict" finds neither.

    Raises:
        ValueError: unknown parser.
    """
    if parser not in PARSERS:
        raise ValueError(f"parser {parser!r} is unknown: choose from {', '.join(PARSERS)}")
    if parser == "stated":
        return _stated(stated(answer).casefold())
    if parser == "strict":
        first = re.search(r"[^\W\d_]+", answer)
        return {"yes": True, "no": False}.get(first.group().lower()) if first else None
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not any(word in DENIALS or (parser == "contractions" and "n't" in word) for word in words)


def _stated(said: str) -> bool | None:
    said = ASKED.sub("", said)
    first = re.search(r"[^\W\d_]+", said)
    if first and first.group() in SAYS:
        return SAYS[first.group()]
    if UNSURE.search(said):
        return None
    seen = SEEN.search(said)
    if seen is not None:
        said = said[: seen.end()] + LACKS.sub("", said[seen.end() :])
    return False if DENIED.search(said) else None if seen is None else True


def pope_scores(labels: Sequence[bool], said: Sequence[bool | None]) -> Pope:
    """Compute the figures of one split: `labels` says whether "yes" is right, `said` what was answered.

    An answer of None is wrong whatever the label: it says neither yes nor no, and counts as unparsable.
    """
    if len(labels) != len(said) or not labels:
        raise ValueError(f"{len(labels)} labels and {len(said)} answers: as many are needed of both, and at least one")
    pairs = list(zip(labels, said, strict=True))
    right_yes, right_no = (sum(label is answer is verdict for label, answer in pairs) for verdict in (True, False))
    yes, positives = sum(answer is True for answer in said), sum(labels)
    return Pope(
        accuracy=(right_yes + right_no) / len(pairs),
        precision=right_yes / yes if yes else 0.0,
        recall=right_yes / positives if positives else 0.0,
        f1=2 * right_yes / (yes + positives) if yes + positives else 0.0,
        yes_ratio=yes / len(pairs),
        unparsable=sum(answer is None for answer in said) / len(pairs),
    )


def pope_fractions(
    labels: Sequence[bool], said: Sequence[bool | None], images: Sequence[int]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the five figures as (numerators, denominators) [images], for intervals over images, not questions."""
    _, image = np.unique(np.asarray(images), return_inverse=True)
    truth, yes = np.array(labels, dtype=bool), np.array([answer is True for answer in said])
    right = np.array([label is answer for label, answer in zip(labels, said, strict=True)])

    def per_image(marks: np.ndarray) -> np.ndarray:
        return np.bincount(image, weights=marks)

    hits = per_image(truth & yes)
    return {
        "accuracy": (per_image(right), per_image(np.ones(len(truth)))),
        "precision": (hits, per_image(yes)),
        "recall": (hits, per_image(truth)),
        "f1": (2 * hits, per_image(yes) + per_image(truth)),
        "yes_ratio": (per_image(yes), per_image(np.ones(len(truth)))),
    }


def mean_of_splits(splits: Mapping[str, Pope]) -> Pope:
    """Return the mean of every figure over splits; papers about LLaVA quote its `f1`."""
    if not splits:
        raise ValueError("no splits to average: give at least one")
    known = [asdict(scores) for scores in splits.values()]
    return Pope(**{name: sum(one[name] for one in known) / len(known) for name in known[0]})
