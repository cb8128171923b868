"""What each cut of a run left and how it ranked the tokens: one set of maps per stage of a progressive method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..runtime.call import Call
from .accounting import VisualMap, chunk_maps, cuts_of


@dataclass(frozen=True)
class Stage:
    """One cut of one sample.

    `maps`, one per image, tile or video, show what is left after this cut; their scores are those of this cut alone,
    None where it did not rank, NaN where a token had left before.
    """

    layer: int  # tokens leave before this decoder layer
    method: str
    before: int  # visual tokens that were offered
    after: int
    maps: Sequence[VisualMap]


def stages(call: Call, sample: int) -> list[Stage]:
    """Return the cuts of one sample, by the order in which they were made."""
    found = []
    for number in range(len(call.page.contexts)):
        cuts = cuts_of(call, number)
        for count, cut in enumerate(cuts, 1):
            maps = chunk_maps(call, number, sample, cuts[:count])
            if cut.answers[sample].scores is None:
                maps = [replace(m, scores=None) for m in maps]
            before, after = int(cut.before[sample].sum()), int(cut.keep[sample].sum())
            found.append(Stage(cut.layer, cut.method, before, after, maps))
    return found
