"""Put the choices made in several segments together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .tokens import Selection, Written


def join(parts: Sequence[tuple[Tensor, Selection]], rest: Tensor, n: int, stats: Mapping[str, Any]) -> Selection:
    """Return one selection over n tokens, from the choices in segments.

    Args:
        parts: (places Long[m] of a segment's tokens among the n, the choice among the m), disjoint.
        rest: Long[s], tokens that stay as they are and were not candidates.
        stats: facts about the whole; with one segment, that segment's own facts are added.
    """
    if len(parts) == 1 and len(parts[0][0]) == n and not len(rest):
        only = parts[0][1]
        return Selection(only.keep, only.scores, {**stats, **only.stats}, only.written)
    keep = torch.cat([rest, *(places[chosen.keep] for places, chosen in parts)]).sort().values
    scores = None
    if any(chosen.scores is not None for _, chosen in parts):
        scores = torch.full((n,), float("nan"), device=rest.device, dtype=torch.float32)
        for places, chosen in parts:
            if chosen.scores is not None:
                scores[places] = chosen.scores
    facts = [dict(chosen.stats) for _, chosen in parts if chosen.stats]
    own = facts[0] if len(facts) == 1 else {"segments": facts} if facts else {}
    return Selection(keep, scores, {**stats, **own}, join_written(parts, n))


def join_written(parts: Sequence[tuple[Tensor, Selection]], n: int) -> Written | None:
    """Return the written slots of all segments as slots among n tokens."""
    given = [(places, chosen.written) for places, chosen in parts if chosen.written is not None]
    if not given:
        return None
    origin = torch.full((n,), -1, device=given[0][0].device)
    for places, written in given:
        merged = written.origin >= 0
        origin[places[merged]] = places[written.origin[merged]]
    return Written(
        torch.cat([places[written.slots] for places, written in given]),
        torch.cat([written.embeds for _, written in given]),
        origin,
        given[0][1].kind,
    )
