"""A selector that keeps what it is shown, and a forward pass with it on any family."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import vlmopt
from tests.support.families import Family, Image
from tests.support.mechanism import forward
from vlmopt.pruning import Selection, Selector, Signal, VisualTokens

ROWS = [[5, Image(0), 7], [3, Image(1), Image(2), 6]]


@dataclass(frozen=True, kw_only=True)
class Listen(Selector):
    """Keeps everything but the last token, and what it was shown."""

    adaptive = True
    signals: tuple[Signal, ...] = ()
    heard: list[VisualTokens] = field(default_factory=list, compare=False)

    @property
    def needs(self):
        return frozenset(self.signals)

    def select(self, tokens: VisualTokens) -> Selection:
        self.heard.append(tokens)
        return Selection(torch.arange(len(tokens) - 1))

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        raise NotImplementedError


def by_name(found: list[Family]) -> Any:
    return pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in found])


def listen(family: Family, batch: Any, *signals: Signal, layer: int = 0, attn: str = "sdpa", before: tuple = ()) -> Any:
    """The VisualTokens of every sample of a forward pass that has images."""
    ear = Listen(keep_ratio=0.9, layer=layer, signals=signals)
    with vlmopt.optimized(copy.deepcopy(family.build(attn)), [*before, ear]) as model:
        forward(model, batch)
        skipped = {line["what"]: line["why"] for line in vlmopt.report(model).skipped}
    assert ear.heard, skipped
    return ear.heard
