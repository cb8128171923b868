"""Sampled: look at one row of every tile, keep what such rows look at, try it on others; dense where it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from vlmopt.core import setting

from ..sparse_attention.index import Launch, tile_count
from .bands import block_table
from .base import Pattern, register
from .blocks import BlockGrid, block_grid, by_mass
from .dense import DensePattern
from .min_p import MinP
from .prefill import Prefill
from .sampling import Draft, Trial
from .tables import one_of_many
from .vertical_slash import NEAR, VerticalSlash
from .view import View

HELD = (0.92, 0.97)  # shares of a drawn row's attention that its blocks must hold; the rows beside it lose some
COLUMNS = (1 / 128, 1 / 32)  # single keys per token, beside the first ones
FAR = (0, 2, 1 / 128)  # distances beyond the nearest ones: none, two, or one per 128 tokens
LEAST = 30  # single keys that `vertical_slash` keeps
TAUS = (0.87, 0.5)
CHANCE = 0.05  # by how much less the drawn rows may look at lines than all rows do

Launches = Callable[[View, Tensor], Launch]  # of what is proposed, for a view of heads Long[H'], by their place


@dataclass(frozen=True, eq=False)
class Proposal:
    """What some heads might keep."""

    launch: Launches
    cells: Tensor  # fp32 [H]: share of the cells; infinite for heads that it will not do for


@register("sampled")
@dataclass(frozen=True, kw_only=True)
class Sampled(Pattern):
    """Keep, head by head, the sparsest kind of keys that is seen to hold `recall` of the attention; else every key.

    One row of each tile, drawn at random, is computed exactly. What it looks at proposes blocks for its own tile, with
    or without those beside it; what all of them look at proposes single keys and distances (as MInference 1.0, arXiv
    2407.02490). Where neither will do, `min_p` (VecAttention, arXiv 2603.29494) is tried. A proposal will do if `trial`
    other rows find `recall` of their attention in it, less the standard error of their mean. The sink counts nowhere. A
    head for which nothing will do with at most `most` of the cells is dense. Every sample is decided by itself.
    """

    reads = "attention of a row of each tile"

    recall: float = setting(0.9, "Share of the attention off the sink that a head keeps.", "float", above=0, max=1)
    most: float = setting(0.5, "Share of the cells above which a head is dense.", "float", min=0, max=1)
    trial: int = setting(32, "Rows that proposals are tried on.", "int", min=8, max=4096)

    @property
    def is_identity(self) -> bool:
        return self.recall == 1 or not self.most

    def build(self, prefill: Prefill) -> list[Launch]:
        if prefill.batch == 1:
            return self.decide(prefill)
        tiles = tile_count(prefill.rows, self.tile)
        found: list[Launch] = []
        for b in range(prefill.batch):
            found += [Launch(one_of_many(x.index, b, prefill.batch, tiles)) for x in self.decide(prefill.sample(b))]
        return found

    def decide(self, prefill: Prefill) -> list[Launch]:
        """Return the launches of one sample."""
        trial = Trial.of(prefill, self.trial, self.tile)
        proposals: list[Proposal] = []
        hopeful = trial.best(self.most) >= self.recall
        if bool(hopeful.any()):
            draft = Draft.of(prefill, self.tile, self.run)
            proposals = [*self.blocks(prefill, draft, trial), *self.lines(prefill, draft, trial, hopeful)]
            least = torch.stack([proposal.cells for proposal in proposals]).amin(0)
            proposals += self.columns(trial, hopeful & (least > self.most))
        return self.chosen(View(prefill), proposals)

    def chosen(self, view: View, proposals: list[Proposal]) -> list[Launch]:
        """Return the launches of the sparsest proposal of each head."""
        heads, dense = view.prefill.heads, DensePattern(tile=self.tile, run=self.run)
        limit = torch.full((1, len(heads)), self.most, device=heads.device, dtype=torch.float32)  # ties are dense
        choice = torch.cat([limit, *(proposal.cells[None] for proposal in proposals)]).argmin(0)
        launches: list[Launch] = []
        for number in choice.unique().tolist():
            mine = (choice == number).nonzero()[:, 0]
            own = view.on(heads[mine])
            launches += [proposals[number - 1].launch(own, mine)] if number else dense.select(own)
        return launches

    def blocks(self, prefill: Prefill, draft: Draft, trial: Trial) -> list[Proposal]:
        """Propose the blocks that hold most of the drawn row, or of it and of those of the tiles beside it."""
        grid = block_grid(prefill, self.tile, self.run)
        beside = draft.blocks.clone()
        beside[:, :, 1:] += draft.blocks[:, :, :-1] / 2
        beside[:, :, :-1] += draft.blocks[:, :, 1:] / 2
        tried = BlockGrid(*(at(x, trial.tiles) for x in (grid.visible, grid.diagonal, grid.first)))

        def launch(share: Tensor, held: float, view: View, heads: Tensor) -> Launch:
            keep = most_mass(share[:, heads], held, grid)
            return Launch(view.index(self.tile, self.run, block_table(view, keep, self.tile, self.run)))

        proposals = []
        for share, held in product((draft.blocks, beside), HELD):
            keep = most_mass(at(share, trial.tiles), held, tried)
            proposals.append(Proposal(partial(launch, share, held), self.will_do(*trial.blocks(keep, self.run))))
        return proposals

    def lines(self, prefill: Prefill, draft: Draft, trial: Trial, heads: Tensor) -> list[Proposal]:
        """Propose single keys and distances that hold most of all drawn rows, to heads Bool[H]."""

        def launch(pattern: VerticalSlash, view: View, heads: Tensor) -> Launch:
            return pattern.launch(view, draft.verticals[:, heads], draft.slashes[:, heads])

        proposals = []
        for columns, far in product(COLUMNS, FAR):
            vertical = max(self.run, LEAST) + int(columns * prefill.width)
            slash = NEAR + int(far * (prefill.width if far < 1 else 1))
            hopeful = heads & (draft.lines(vertical, slash) >= self.recall - CHANCE)
            pattern = VerticalSlash(tile=self.tile, run=self.run, vertical=vertical, slash=slash)
            proposals.append(self.tried(partial(launch, pattern), trial, hopeful))
        return proposals

    def columns(self, trial: Trial, heads: Tensor) -> list[Proposal]:
        """Propose the keys that the mean query of a tile likes, to heads Bool[H]."""

        def launch(pattern: MinP, view: View, heads: Tensor) -> Launch:
            return pattern.select(view)[0]

        patterns = (MinP(tile=self.tile, run=self.run, tau=tau) for tau in TAUS)
        return [self.tried(partial(launch, pattern), trial, heads) for pattern in patterns]

    def tried(self, launch: Launches, trial: Trial, heads: Tensor) -> Proposal:
        """Try what is proposed to heads Bool[H] on the rows of the trial."""
        cells, some = (
            torch.full(heads.shape, torch.inf, device=heads.device, dtype=torch.float32),
            heads.nonzero()[:, 0],
        )
        if len(some):
            own = trial.of_heads(some)
            cells[some] = self.will_do(*own.index(launch(own.view, some).index))
        return Proposal(launch, cells)

    def will_do(self, held: Tensor, cells: Tensor) -> Tensor:
        return cells.where(held >= self.recall, torch.inf)


def at(x: Tensor, tiles: Tensor) -> Tensor:
    """Return [B, h, R, N]: the tiles Long[B, R] of x [B, h, T, N]."""
    return x.take_along_dim(tiles[:, None, :, None], 2)


def most_mass(share: Tensor, held: float, grid: BlockGrid) -> Tensor:
    return by_mass(share * grid.visible, held, grid.visible, grid.forced)
