"""How benchmarks of documents, charts and signs mark short answers: relaxed accuracy and VQA accuracy."""

from __future__ import annotations

import re
from collections.abc import Sequence

TOLERANCE = 0.05  # of a number, relative
ENOUGH = 3  # people who give an answer make it right
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(WORDS)} | {"none": "0"}
ARTICLES = frozenset({"a", "an", "the"})
JOINED = re.compile(r"(?<=\d),(?=\d)")
MARKS = re.compile(r"[;/\[\]\"{}()=+\\_\-><@`,?!]")
STOP = re.compile(r"(?<!\d)\.(?!\d)|\.(?=\s|$)")


def relaxed(answer: str, references: Sequence[str]) -> bool:
    """Return whether an answer is right within 5 % of a number, or else word for word in small letters.

    The relaxed accuracy of PlotQA (arXiv 1909.00997) and ChartQA (2203.10244); "12 %" is read as 0.12, on both sides.

    Raises:
        ValueError: no accepted answer.
    """
    if not references:
        raise ValueError("relaxed accuracy needs at least one accepted answer")
    return any(_near(answer, reference) for reference in references)


def _near(answer: str, reference: str) -> bool:
    said, right = _number(answer), _number(reference)
    if said is not None and right:
        return abs(said - right) <= TOLERANCE * abs(right)
    return answer.strip().casefold() == reference.strip().casefold()


def _number(text: str) -> float | None:
    found = re.fullmatch(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*(%?)\s*", text, re.IGNORECASE)
    return None if found is None else float(found[1]) / (100 if found[2] else 1)


def vqa(answer: str, references: Sequence[str]) -> float:
    """Return VQA accuracy: the mean over leaving one person out of min(1, others who said the same / 3).

    Antol et al., "VQA: Visual Question Answering", arXiv 1505.00468, as TextVQA (1904.08920) uses it. Both sides are
    compared after `canonical`; the evaluation script's table of contractions ("dont") is left out.

    Raises:
        ValueError: no accepted answer.
    """
    if not references:
        raise ValueError("VQA accuracy needs the answers of the people who were asked")
    said, given = canonical(answer), [canonical(reference) for reference in references]
    same = given.count(said)
    if len(given) == 1:
        return float(same)
    shares = [min(1.0, (same - (one == said)) / ENOUGH) for one in given]
    return sum(shares) / len(shares)


def canonical(text: str) -> str:
    """Return small letters, digits for number words, no articles, no marks but those inside of numbers."""
    plain = STOP.sub("", MARKS.sub(" ", JOINED.sub("", text.casefold())))
    words = (NUMBERS.get(word, word) for word in plain.split())
    return " ".join(word for word in words if word not in ARTICLES)
