"""Short answers against accepted ones: word for word, by edit distance, or the letter of a choice."""

from __future__ import annotations

import re
from collections.abc import Sequence

ANLS_THRESHOLD = 0.5
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def plain(text: str) -> str:
    """Small letters, single spaces, no full stop at the end."""
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def exact(answer: str, references: Sequence[str]) -> bool:
    """Whether an answer is one of the accepted ones, after `plain`."""
    return plain(answer) in map(plain, references)


def anls(answer: str, references: Sequence[str]) -> float:
    """Normalized Levenshtein similarity to the nearest accepted answer, 0 where it is below one half.

    Average Normalized Levenshtein Similarity is the mean of this (Biten et al., "Scene Text Visual Question Answering",
    arXiv 1905.13648). As in the scorer of the challenge, both are put in small letters with single spaces, and a
    similarity of exactly one half counts (the paper's formula would make it 0).

    Raises:
        ValueError: no accepted answer, or the package rapidfuzz is not installed.
    """
    if not references:
        raise ValueError("anls needs at least one accepted answer")
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise ValueError("ANLS needs the package rapidfuzz: pip install 'vlmopt[eval]'") from error
    said = _folded(answer)
    best = max(Levenshtein.normalized_similarity(said, _folded(reference)) for reference in references)
    return float(best) if best >= ANLS_THRESHOLD else 0.0


def choice(answer: str, choices: Sequence[str]) -> int | None:
    """Which choice an answer names: by its letter, else by its words; None where it names none or several.

    A letter counts alone ("B", "(B)", "B. a dog") or after "answer" ("The answer is B"); an "A" that begins a sentence
    is a word.

    Raises:
        ValueError: fewer than two choices, or more than there are letters.
    """
    if not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(f"{len(choices)} choices: there must be 2 to {len(LETTERS)}")
    said, last = answer.strip(), LETTERS[len(choices) - 1]
    for pattern in (rf"\(?([A-{last}])(?:[).:,]|\s*$)", rf".*\banswer(?:\s+is)?\s*:?\s*\(?([A-{last}])(?:[).:,]|\s|$)"):
        if found := re.match(pattern, said, re.IGNORECASE | re.DOTALL):
            return LETTERS.index(found[1].upper())
    text, words = plain(said), list(map(plain, choices))
    same = [i for i, option in enumerate(words) if option == text]
    named = same or [i for i, option in enumerate(words) if re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text)]
    return named[0] if len(named) == 1 else None


def right_choice(references: Sequence[str], choices: Sequence[str]) -> int:
    """Which choice is right: the one whose words or whose letter the data gives.

    Raises:
        ValueError: it names none of the choices.
    """
    for reference in references:
        words = [plain(text) for text in choices]
        if plain(reference) in words:
            return words.index(plain(reference))
        if len(reference.strip()) == 1 and reference.strip().upper() in LETTERS[: len(choices)]:
            return LETTERS.index(reference.strip().upper())
    raise ValueError(f"the answer {list(references)} is neither one of the choices {list(choices)} nor its letter")


def _folded(text: str) -> str:
    return " ".join(text.lower().split())
