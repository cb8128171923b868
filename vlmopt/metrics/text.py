"""Measure the state of generated text: whether it repeats itself, whether it ends.

A low CHAIR on broken text is worth nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .lexicon import tokens

CLOSING = "\"'”’)]*"


@dataclass(frozen=True)
class TextState:
    """Means over captions.

    `distinct_1`, `distinct_4`: different n-grams of a caption by all of its n-grams (captions too short for one are
    left out; 1 if all are); `repeated`: share of captions in which a sentence comes twice, word for word; `unended`:
    share that does not end in a sentence's last mark; `length` in words.
    """

    distinct_1: float
    distinct_4: float
    repeated: float
    unended: float
    length: float


def text_state(captions: Sequence[str], *, stops: str = ".!?", ended: Sequence[bool] | None = None) -> TextState:
    """Measure the state of captions.

    Args:
        captions: at least one.
        stops: marks between sentences ("," where a caption is one list).
        ended: whether each caption came to its end, where that is known from the tokens rather than from a last mark.

    Raises:
        ValueError: no captions, no stops, or not as many `ended` as captions.
    """
    if not captions or not stops or (ended is not None and len(ended) != len(captions)):
        raise ValueError("text_state needs captions, at least one mark in stops, and `ended` for all captions or none")
    if ended is None:
        ended = [caption.rstrip().rstrip(CLOSING).endswith(tuple(stops)) for caption in captions]
    words = [tokens(caption) for caption in captions]
    return TextState(
        distinct_1=distinct(words, 1),
        distinct_4=distinct(words, 4),
        repeated=float(np.mean([_repeats(caption, stops) for caption in captions])),
        unended=1.0 - float(np.mean(ended)),
        length=float(np.mean([len(own) for own in words])),
    )


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Return the ratio of different n-grams to n-grams, mean over texts."""
    shares = []
    for words in texts:
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        if grams:
            shares.append(len(set(grams)) / len(grams))
    return float(np.mean(shares)) if shares else 1.0


def _repeats(caption: str, stops: str) -> bool:
    sentences = [" ".join(tokens(part)) for part in re.split(f"[{re.escape(stops)}\\n]", caption)]
    sentences = [sentence for sentence in sentences if sentence]
    return len(set(sentences)) < len(sentences)
