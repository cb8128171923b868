"""Compare short answers with accepted ones: word for word, by edit distance, or by the letter of a choice."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from .stated import concluded, stated, words

ANLS_THRESHOLD = 0.5
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OTHER = "BCDEFGHJKLMNOPQRSTUVWXYZ"  # those that are not words of their own
GOES_ON = "because|since|as|is|are|was|and|or|for|with|which|due"  # what no article stands before
JOINED = r"\s*(?:[)\]]\s*)?(?:,?\s*\b(?:and|or)\b|[,/&|]|和|或)\s*(?:option\s+)?"
OPTION = re.compile(
    r"\b(?:option|choice|letter|choose|pick|select|(?:would|should|must)\s+be|it\s+is|it['’]s|go(?:ing)?\s+with|say"
    r"|so|thus|hence|therefore|looks\s+like)\b,?\s*(?:is\b)?\s*:?\s*|选(?:项|择)?\s*:?\s*",
    re.I,
)


def plain(text: str) -> str:
    """Return lower-case letters, single spaces, no full stop at the end."""
    return " ".join(text.casefold().split()).removesuffix(".").removesuffix("。").rstrip()


def exact(answer: str, references: Sequence[str]) -> bool:
    """Return whether an answer, in full or by what it states (`metrics.stated`), is an accepted one, after `plain`."""
    return not {plain(answer), plain(stated(answer))}.isdisjoint(map(plain, references))


def anls(answer: str, references: Sequence[str]) -> float:
    """Return the normalized Levenshtein similarity to the nearest accepted answer, 0 where it is below one half.

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
        raise ValueError("ANLS needs the package rapidfuzz: pip install rapidfuzz") from error
    said = _folded(answer)
    best = max(Levenshtein.normalized_similarity(said, _folded(reference)) for reference in references)
    return float(best) if best >= ANLS_THRESHOLD else 0.0


def choice(answer: str, choices: Sequence[str]) -> int | None:
    """Return which choice an answer names: by its letter, else by its words; None where it names none or several.

    Read is what the answer states in the end (`metrics.stated`). A letter counts behind "the answer is", alone on a
    line, alone in a sentence, behind "option", "I choose" or "it is", and at the beginning of a line ("B. a dog"), in
    any case and in brackets or none. A bare "A" before another word is an article, unless a word such as "because"
    follows: "Answer: A dog" names the dog.

    Raises:
        ValueError: fewer than two choices, or more than there are letters.
    """
    if not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(f"{len(choices)} choices: there must be 2 to {len(LETTERS)}")
    text = unicodedata.normalize("NFKC", words(answer))  # full-width letters and brackets are letters and brackets
    last, options = LETTERS[len(choices) - 1], list(map(plain, choices))
    if len(text) > 1 and options.count(plain(text)) == 1:
        return options.index(plain(text))
    if end := concluded(text):
        found = _letters(end, last) or _named(end, options)
        if found:
            return found.pop() if len(found) == 1 else None
    sentences = re.split(r"\n|(?<=[.!?。])\s+", text)
    # Lines first: as sentences, "A." and "B." of a list of all choices stand alone, too.
    alone = _alone(text.split("\n"), last) or _alone(sentences, last)
    behind = set[int]().union(*(_letters(text[cue.end() :], last) for cue in OPTION.finditer(text)))
    found = alone or behind.union(*(_letters(sentence, last) for sentence in sentences)) or _named(text, options)
    return found.pop() if len(found) == 1 else None


def _alone(parts: Sequence[str], last: str) -> set[int]:
    """Return the letters of those parts that are nothing but a letter."""
    return set[int]().union(*(_letters(part, last) for part in parts if len(re.findall(r"\w", part)) == 1))


def _letters(text: str, last: str) -> set[int]:
    """Return the letter, up to `last`, that a text begins with, or several that are joined ("A or B")."""
    letter = rf"([A-{last}])"
    ends = r"[\"'”’]?\s*(?:[).:,;!?。、\]}/&|=]|$|\n|[-–—]\s)"
    single = rf"[(\[{{]\s*{letter}\s*[)\]}}]|{letter}(?={ends}|\s+(?:{GOES_ON})\b)|(?-i:([{OTHER}]))(?=\s)"
    found, places = re.match(rf"[\s\"'“]*(?:{single})", text, re.I), set[int]()
    while found:
        (name,) = filter(None, found.groups())
        if name.upper() > last:
            break
        places.add(LETTERS.index(name.upper()))
        text = text[found.end() :]
        found = re.match(rf"{JOINED}(?:[(\[]{letter}[)\]]|{letter}(?={ends}|\s+(?:and|or)\b))", text, re.I)
    return places


def _named(text: str, options: Sequence[str]) -> set[int]:
    """Return the options whose words a text is, or else holds; all in small letters."""
    said = plain(text)
    same = {i for i, option in enumerate(options) if option == said}
    return same or {i for i, option in enumerate(options) if re.search(rf"(?<!\w){re.escape(option)}(?!\w)", said)}


def right_choice(references: Sequence[str], choices: Sequence[str]) -> int:
    """Return which choice is right: the one whose words or whose letter the data gives.

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


def in_words(letter: str, choices: Sequence[str]) -> str:
    """Return the words of a letter's choice, since those may be letters themselves; the letter where two are alike."""
    words = list(map(plain, choices))
    own = LETTERS.index(letter)
    return choices[own] if words.count(words[own]) == 1 else letter


def _folded(text: str) -> str:
    return " ".join(text.lower().split())
