"""Find the objects that a caption names: tokens, singulars, pairs of words that mean one thing, synonyms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

IRREGULAR = {
    "men": "man", "women": "woman", "people": "person", "children": "child", "mice": "mouse", "knives": "knife",
    "geese": "goose", "calves": "calf", "loaves": "loaf", "feet": "foot", "teeth": "tooth", "oxen": "ox",
    "policemen": "policeman", "firemen": "fireman", "buses": "bus", "busses": "bus",
    "minibuses": "minibus", "trolleybuses": "trolleybus", "taxis": "taxi", "canoes": "canoe",
    "neckties": "necktie", "tvs": "tv",
}  # fmt: skip
UNCHANGED = frozenset({"bus", "glass", "skis", "scissors", "species", "tennis", "cattle", "sheep", "grass", "dress"})


@dataclass(frozen=True)
class Lexicon:
    """Names of objects and how text spells them.

    Attributes:
        names: singular word or merged phrase -> canonical name.
        pairs: two adjacent singular words -> the phrase or word that stands for both (which may name nothing).
        source: which table this is, for the head of a report.
        exclusions: words dropped where another one was named too, word -> that other one.
    """

    names: Mapping[str, str]
    pairs: Mapping[tuple[str, str], str]
    source: str
    exclusions: Mapping[str, str] = field(default_factory=dict)

    def mentions(self, caption: str) -> list[str]:
        """Return canonical names in the order of the caption, repetitions kept."""
        words = merge(tuple(map(singular, tokens(caption))), self.pairs)
        dropped = {word for word, other in self.exclusions.items() if other in words}
        return [self.names[word] for word in words if word in self.names and word not in dropped]


def tokens(text: str) -> list[str]:
    """Return lower-case words, with hyphens and apostrophes inside them; punctuation is left out."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())


def singular(word: str) -> str:
    """Return the singular of an English noun, by rules of our own (not `pattern`, not WordNet); "man's" names a man."""
    word = re.sub("['’]s$", "", word)
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word in UNCHANGED or len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y" if len(word) > 5 else word[:-1]
    if word.endswith(("ches", "shes", "sses", "xes", "zes", "oes")):
        return word[:-2]
    return word[:-1]


def merge(words: tuple[str, ...], pairs: Mapping[tuple[str, str], str]) -> list[str]:
    """Merge listed pairs of words in one scan from left to right; pairs win over single words."""
    merged, at = [], 0
    while at < len(words):
        found = pairs.get((words[at], words[at + 1])) if at + 1 < len(words) else None
        merged.append(words[at] if found is None else found)
        at += 1 if found is None else 2
    return merged


def phrases(names: Iterable[str], source: str) -> Lexicon:
    """Make the lexicon of a closed set of names of one or two words, each meaning itself."""
    names = tuple(names)
    split = [tuple(name.split()) for name in names]
    long = [" ".join(words) for words in split if len(words) > 2]
    if long:
        raise ValueError(f"names have one or two words, got {long}")
    pairs = {(words[0], words[1]): " ".join(words) for words in split if len(words) == 2}
    return Lexicon({name: name for name in names}, pairs, source)
