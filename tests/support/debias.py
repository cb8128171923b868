"""Scores with a positional trend, and the profiles and hosts that debiasing is tested with."""

from __future__ import annotations

import dataclasses
import math

import torch

from vlmopt.pruning import AttentionRows, Selection, VisualTokens
from vlmopt.pruning.base import ScoreSelector, top
from vlmopt.pruning.profile import DebiasProfile

ROWS = AttentionRows(1)
MODEL = {"model_type": "llava", "hidden_size": 64, "layers": 4, "name_or_path": "here"}


def visual(scores: torch.Tensor, *grids: tuple[int, int, int]) -> VisualTokens:
    """Tokens of whole grids with these attention scores [n]; one row of tokens without a grid given."""
    grids = grids or ((1, 1, len(scores)),)
    sizes = [math.prod(grid) for grid in grids]
    coords = torch.cat([torch.cartesian_prod(*map(torch.arange, grid)).reshape(-1, 3) for grid in grids])
    item = torch.repeat_interleave(torch.arange(len(grids)), torch.tensor(sizes))
    signals = {ROWS: scores.float().expand(2, 1, -1)}
    return VisualTokens(len(coords), torch.arange(len(coords)), item, coords, grids, signals, 0, tuple(sizes))


def trend(sigma: float, n: int, mu: float = 0.01) -> torch.Tensor:
    return mu * torch.exp(sigma * torch.arange(n) / n)


def profile(**changes) -> DebiasProfile:
    facts = {
        "model": MODEL, "host": "fastv", "layer": 2, "sigma": [1.2], "samples": 8,
        "queries": "last prompt row", "head_reduction": "mean",
    }  # fmt: skip
    return DebiasProfile(**{**facts, **changes})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps(ScoreSelector):
    """A host that cuts twice and chooses in its own way: the best, and always the last token."""

    name = "steps"
    trend = True

    last: bool = False

    @property
    def needs(self):
        return frozenset({ROWS})

    @property
    def stages(self):
        if self.last:
            return (self,)
        return tuple(dataclasses.replace(self, layer=layer, last=True) for layer in (2, 5))

    def score(self, tokens):
        return tokens.signals[ROWS].mean((0, 1))

    def take(self, tokens, k, scores):
        return Selection(torch.cat([top(scores[:-1], k - 1), torch.tensor([len(tokens) - 1])]), scores)
