"""What selectors are given and choose, on both sides: the engine runs in this process, as the reference does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from vlmopt.pruning import ProjectorCall, Selection, Selector, VisualTokens
from vlmopt.pruning.base import top

Made = tuple[VisualTokens, Selection]
READ = 1e-4  # of the largest number: by how much what is read of two towers in fp32 may differ
NEAR = 1e-5  # by how much scores may differ that rounding turns around


class Choices:
    """Records every choice; on request it is the one that was made before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[Made] = []
        self.forced: Made | None = None
        select = Selector.select

        def recorded(method: Selector, tokens: VisualTokens) -> Selection:
            found = select(method, tokens) if self.forced is None else again(*self.forced, tokens)
            if not method.before_tower:  # an engine's front end asks that one in another way
                self.made.append((tokens, found))
            return found

        monkeypatch.setattr(Selector, "select", recorded)

    @contextmanager
    def repeating(self, made: Made) -> Iterator[None]:
        self.forced = made
        yield
        self.forced = None

    def of(self, ask: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, list[Made]]:
        """What a call returns, and what was chosen meanwhile."""
        self.made.clear()
        return ask(*args, **kwargs), list(self.made)


def again(tokens: VisualTokens, made: Selection, here: VisualTokens) -> Selection:
    """The same rows among those that are here, which may be more (padding that one side has left out before)."""
    assert made.written is None or len(tokens) == len(here)
    keep = torch.isin(here.ordinal, tokens.ordinal[made.keep]).nonzero()[:, 0]
    return Selection(keep, None, {}, made.written)


def same_rows(ours: Made, theirs: Made) -> bool:
    (a, chosen_a), (b, chosen_b) = ours, theirs
    return torch.equal(a.ordinal[chosen_a.keep], b.ordinal[chosen_b.keep])


def difference(ours: VisualTokens, theirs: VisualTokens) -> float:
    """By how much what is read differs, as a fraction of the largest number; everything else has to be equal."""
    assert (ours.total, ours.grids, ours.seed, ours.lengths) == (
        theirs.total,
        theirs.grids,
        theirs.seed,
        theirs.lengths,
    )
    assert set(ours.signals) <= set(theirs.signals)  # pixels that tell padding stay where they are
    index = torch.searchsorted(theirs.ordinal, ours.ordinal)
    theirs = theirs.subset(index)
    for name in ("ordinal", "item", "coords"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    pairs = [(numbers(value), numbers(theirs.signals[need])) for need, value in ours.signals.items()]
    assert all(a.shape == b.shape for a, b in pairs)
    return max((float((a - b).abs().max() / b.abs().max()) for a, b in pairs), default=0.0)


def numbers(signal: Any) -> Tensor:
    value = signal.inputs if isinstance(signal, ProjectorCall) else signal
    return value.double().nan_to_num(nan=0.0)


def nearly_tied(ours: Made, theirs: Made) -> bool:
    """Whether rows that only one side chose can be there by rounding: their scores are that near, where scores decide.

    A greedy choice is another matter, since one near-tie moves what follows: there equal reading is what can be asked.
    """
    (a, chosen_a), (b, chosen_b) = ours, theirs
    if difference(a, b) > READ:
        return False
    if chosen_b.scores is None or not torch.equal(chosen_b.keep, top(chosen_b.scores, len(chosen_b.keep))):
        return True
    one, other = a.ordinal[chosen_a.keep], b.ordinal[chosen_b.keep]
    swapped = torch.cat([one[~torch.isin(one, other)], other[~torch.isin(other, one)]])
    scores = chosen_b.scores[torch.isin(b.ordinal, swapped)]
    return bool(scores.max() - scores.min() < NEAR)
