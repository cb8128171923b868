"""CHAIR: which of the objects that captions name are not in the image.

Rohrbach et al., "Object Hallucination in Image Captioning", arXiv 1809.02156. Longer captions name more, so length is
always part of the answer; repeating a safe object lowers `chair_i`, so `unique_i` leaves repetitions out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from .lexicon import Lexicon, tokens

COUNTS: tuple[str, ...] = ("said", "false", "names", "found", "there", "words")


@dataclass(frozen=True)
class Chair:
    """Counts per caption, int64 [captions] each; the figures are ratios of their sums, 0 without a denominator.

    `said` objects named, repetitions included, `false` those of them not there; `names` different ones, `found` those
    of them there; `there` objects of the image; `words` of the caption; `source` of the lexicon.
    """

    said: np.ndarray
    false: np.ndarray
    names: np.ndarray
    found: np.ndarray
    there: np.ndarray
    words: np.ndarray
    source: str

    @property
    def fractions(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Every figure as (numerators, denominators) per caption, for intervals."""
        one = np.ones_like(self.said)
        return {
            "chair_s": ((self.false > 0).astype(np.int64), one),
            "chair_i": (self.false, self.said),
            "unique_i": (self.names - self.found, self.names),
            "recall": (self.found, self.there),
            "precision": (self.found, self.names),
            "f1": (2 * self.found, self.names + self.there),
            "length": (self.words, one),
        }

    @property
    def figures(self) -> dict[str, float]:
        """chair_s, chair_i, unique_i, recall, precision, f1 (fractions) and length (words per caption)."""
        return {name: float(a.sum() / max(b.sum(), 1)) for name, (a, b) in self.fractions.items()}


def chair(captions: Sequence[str], truths: Sequence[Collection[str]], lexicon: Lexicon) -> Chair:
    """Mark captions.

    Args:
        captions: one per image.
        truths: canonical names of what each image shows.
        lexicon: how text spells the names.

    Raises:
        ValueError: not as many truths as captions, none of both, or a true name that the lexicon does not know.
    """
    if len(captions) != len(truths) or not captions:
        raise ValueError(f"{len(captions)} captions and {len(truths)} truths: as many are needed, and at least one")
    unknown = {name for truth in truths for name in truth} - set(lexicon.names.values())
    if unknown:
        raise ValueError(f"the lexicon ({lexicon.source}) does not know {sorted(unknown)[:5]}: map them to its names")
    rows = []
    for caption, truth in zip(captions, map(set, truths), strict=True):
        said = lexicon.mentions(caption)
        names = set(said)
        false = sum(name not in truth for name in said)
        rows.append((len(said), false, len(names), len(names & truth), len(truth), len(tokens(caption))))
    columns = np.array(rows, dtype=np.int64).T
    return Chair(**dict(zip(COUNTS, columns, strict=True)), source=lexicon.source)
