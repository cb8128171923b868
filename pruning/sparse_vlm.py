"""SparseVLM: let words that speak about the image vote, in three layers; merge the best of what falls out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vlmopt.core.settings import setting

from .base import register, top
from .cluster import NEIGHBOURS, density_peaks
from .pyramid_drop import Progressive
from .released import Renumbered
from .signals import TEXT, AttentionRows, HiddenStates, Signal, TextEmbeds, VisualEmbeds
from .tokens import Selection, VisualTokens, Written

# Tokens left of 576 after each of three cuts, as released for budgets "64", "96", "128" and "192"; and no cut at all.
PUBLISHED = ((66, 30, 17), (238, 48, 26), (303, 110, 36), (300, 200, 110), (576, 576, 576))


@register("sparse_vlm")
@dataclass(frozen=True, kw_only=True)
class SparseVLM(Renumbered, Progressive):
    """Keep the tokens with the highest attention from words that match the image, before each cut; merge the next best.

    SparseVLM: Visual Token Sparsification for Efficient VLM Inference (arXiv 2410.04417). The attention is that of the
    layer before the cut. Voters are the text rows with R > mean(R), R = mean over visual tokens of softmax over
    text(V T^T), with the V that are left at the cut. keep_ratio is what is left after the last cut: 110/576, 36/576,
    26/576, 17/576 are the paper's "192", "128", "96", "64". Three cuts follow its tables, geometrically interpolated;
    other numbers of cuts leave the same part at each. Merged tokens lie in the slots of their clusters' centres; in the
    released code they lie behind all tokens that stay. There, generated tokens also go on from the position that the
    whole prompt would have had, here from the renumbered one. SparseVLM+, which keeps positions, is recycle=False,
    heads=14, debiased.
    """

    reads = "attention"
    merges = True
    query_aware = True
    trend = True

    layers: tuple[int, ...] = setting(
        (3, 7, 16),
        "Tokens leave before each of these decoder layers, in rising order; the attention of the layer before decides.",
        "ints",
        min=1,
    )
    count: str = setting(
        "schedule",
        "How many stay: schedule: the ratios; rank: n - rank_factor * (n - rank of the votes), at most those.",
        "str",
        choices=("schedule", "rank"),
    )
    rank_factor: float = setting(
        1.0, "Fraction of the redundant tokens that leaves, with count=rank.", "float", above=0, max=1
    )
    heads: int | None = setting(
        None, "Heads with the most attention on the image that vote; all if not given.", "int", min=1
    )
    recycle: bool = setting(True, "Merge the best 30 % of what leaves into clusters; the budget includes them.", "bool")
    paper_compat: bool = setting(
        False,
        "As released: merged tokens come on top of the budget, the density of a point counts as many neighbours as "
        "there are clusters, all visual tokens of the prompt choose the voters, once for every cut, and, with recycle, "
        "survivors are renumbered.",
        "bool",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "adaptive", self.count == "rank" or (self.recycle and self.paper_compat))

    def schedule(self) -> tuple[float, ...]:
        return published(self.ratio) if len(self.layers) == 3 else super().schedule()

    @property
    def is_identity(self) -> bool:
        return super().is_identity and self.count == "schedule"

    @property
    def numbering(self) -> str:
        return super().numbering if self.recycle else self.positions or "keep"

    @property
    def electorate(self) -> VisualEmbeds:
        """The visual tokens that choose the voters."""
        return VisualEmbeds(whole=self.paper_compat)

    @property
    def needs(self) -> frozenset[Signal]:
        votes = {self.electorate, TextEmbeds(), AttentionRows(self.layer - 1, TEXT)}
        return frozenset(votes | {HiddenStates()} if self.recycle else votes)

    def score(self, tokens: VisualTokens) -> Tensor:
        return self.votes(tokens).mean((0, 1))

    def votes(self, tokens: VisualTokens) -> Tensor:
        """Return fp32 [h', R, n]: attention of the voting heads, voters' rows scaled to a mean over voters, others 0.

        Raises:
            ValueError: no text behind the last visual token.
        """
        text, rows = tokens.signals[TextEmbeds()], tokens.signals[AttentionRows(self.layer - 1, TEXT)].float()
        if not len(text):
            raise ValueError(
                f"{self.label}: no text behind the last visual token, so nothing votes; ask after the image"
            )
        voters = raters(tokens.signals[self.electorate], text)
        votes: Tensor = rows * (voters.float() * len(text) / voters.sum())[:, None]
        if self.heads is not None and self.heads < len(votes):
            votes = votes[top(votes.sum((1, 2)), self.heads)]
        return votes

    def take(self, tokens: VisualTokens, k: int, scores: Tensor) -> Selection:
        n = len(tokens)
        if self.count == "rank":
            rank = int(torch.linalg.matrix_rank(self.votes(tokens).mean(0)))  # a count has to be known on the host
            k = min(k, max(n - math.floor(self.rank_factor * (n - rank)), 1))
        merged = 0
        if self.recycle and k < n:
            merged = recycled(n - k)[1] if self.paper_compat else room(n, k)
        if not merged:
            return Selection(top(scores, k), scores)
        best = k if self.paper_compat else k - merged
        order = scores.sort(descending=True, stable=True).indices
        rest = order[best : best + recycled(n - best)[0]].sort().values
        written = merge(tokens.signals[HiddenStates()], rest, merged, merged if self.paper_compat else NEIGHBOURS)
        keep = torch.cat([order[:best], written.slots]).sort().values
        return Selection(keep, scores, {"merged": merged}, written)


def published(ratio: float) -> tuple[float, ...]:
    """Return the fractions left after each of three cuts that end at `ratio`, interpolated between the tables."""
    rows = [[count / 576 for count in row] for row in PUBLISHED]
    if ratio <= rows[0][-1]:
        return (*(x * ratio / rows[0][-1] for x in rows[0][:-1]), ratio)
    low, high = next((low, high) for low, high in pairwise(rows) if ratio <= high[-1])
    w = math.log(ratio / low[-1]) / math.log(high[-1] / low[-1])
    return (*(a ** (1 - w) * b**w for a, b in zip(low[:-1], high[:-1], strict=True)), ratio)


def raters(visual: Tensor, text: Tensor) -> Tensor:
    """Return Bool[R]: the rows of `text` [R, d] that resemble the tokens of `visual` [n, d] more than the average row.

    If no row stands out, all of them.
    """
    relevance = (visual.float() @ text.float().T).softmax(1).mean(0)
    above = relevance > relevance.mean()
    return above | ~above.any()


def recycled(removed: int) -> tuple[int, int]:
    """Return how many of `removed` >= 1 tokens are merged, and into how many."""
    taken = 3 * removed // 10 + 1
    return taken, taken // 10 + 1


def room(n: int, k: int) -> int:
    """Return how many of the k < n that stay are merged tokens, as many as the others call for; one stays unmerged."""
    merged = 0
    while merged < (wanted := min(recycled(n - k + merged)[1], k - 1)):
        merged = wanted
    return merged


def merge(hidden: Tensor, rest: Tensor, count: int, neighbours: int) -> Written:
    """Merge the tokens `rest` Long[m] of `hidden` [n, d] into `count` clusters: members' mean, at the centre's slot."""
    states = hidden[rest]
    centres, cluster = density_peaks(states, count, neighbours)
    means = torch.zeros(count, hidden.shape[1], device=hidden.device, dtype=torch.float32).index_add_(
        0, cluster, states.float()
    )
    means /= cluster.bincount(minlength=count)[:, None]
    slots = rest[centres]
    origin = torch.full((len(hidden),), -1, device=hidden.device).scatter(0, rest, slots[cluster])
    return Written(slots, means.to(hidden.dtype), origin)
