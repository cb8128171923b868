"""Vertical-slash: keep single keys and whole diagonals that the last rows look at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmopt.core import setting

from ..sparse_attention.index import Launch
from .base import register
from .cover import cover, slash_blocks, slash_places
from .probe import probe_lines
from .tables import ENTRIES, csr, glue, runs
from .view import View, ViewPattern

NEAR = 100  # distances that are always kept
DOUBLINGS = 6  # of the distances, where their number is open


@register("vertical_slash")
@dataclass(frozen=True, kw_only=True)
class VerticalSlash(ViewPattern):
    """Keep the keys, and the distances to the key, that hold most of the mass of the last `probe` rows.

    MInference 1.0 (arXiv 2407.02490), a part of MMInference (arXiv 2504.16083). Among them are always the first `run`
    keys and the last 100 distances. Each slash becomes one run per tile, which starts at any key; runs are as few as
    can cover all slashes of the tile, and verticals inside a run count once.
    """

    reads = "last rows"

    vertical: int = setting(1000, "Single keys, the first ones among them; never fewer than `run`.", "int", min=30)
    slash: int | None = setting(
        None,
        "Distances, the last 100 among them; if not given: 100, 200, 400, up to 6400, the most for which the last row "
        "reads at most a quarter of its keys.",
        "int",
        min=100,
    )
    probe: int = setting(64, "Last rows that are read.", "int", min=1)

    def select(self, view: View) -> list[Launch]:
        return [self.launch(view, *probe_lines(view, self.probe))]

    def launch(self, view: View, verticals: Tensor, slashes: Tensor) -> Launch:
        """Return the launch for given masses fp32 [B, H, N] per key slot and per distance."""
        slot = torch.arange(view.width, device=verticals.device)
        first = view.first[:, None, None]
        head = (slot >= first) & (slot < first + self.run)
        singles = verticals.masked_fill(head, torch.inf).topk(min(max(self.vertical, self.run), view.width)).indices
        return self._tabulate(view, singles.sort(-1).values, self.distances(view, slashes))

    def distances(self, view: View, slashes: Tensor) -> Tensor:
        """Return Bool[B, H, N]: the kept distances, for given masses."""
        most = self.slash or NEAR << DOUBLINGS
        near = torch.arange(view.width, device=slashes.device) < NEAR
        chosen = slashes.masked_fill(near, torch.inf).topk(min(most, view.width)).indices
        rank = torch.full_like(slashes, most, dtype=torch.long)
        rank.scatter_(-1, chosen, torch.arange(chosen.shape[-1], device=rank.device).expand_as(chosen))
        if self.slash:
            return rank < self.slash
        quarter = ((view.limit.amax(-1) + 1 - view.first).float() / 4)[:, None]
        wanted = near.expand_as(rank)
        for doubling in range(1, DOUBLINGS + 1):
            more = rank < NEAR << doubling
            read = slash_places(more, self.tile).sum(-1)  # by a tile far down; scattered distances share no runs
            wanted = wanted | more & (read <= quarter)[..., None]
        return wanted

    def _tabulate(self, view: View, singles: Tensor, slashes: Tensor) -> Launch:
        """Write runs and columns of every tile from key slots Long[B, H, C], ascending, and distances Bool[B, H, N]."""
        low, high = view.span(self.tile)
        places = slash_places(slashes, self.tile)
        starts = cover(places, self.run)
        before = torch.full((*places.shape[:2], places.shape[2] + 1), -self.run, device=places.device)
        latest = before.scatter_(-1, starts, starts).cummax(-1).values  # the run that starts last up to each place
        entries = starts.shape[-1] + singles.shape[-1] + (0 if view.consecutive else view.width // self.run)
        step = max(1, ENTRIES // (singles.shape[0] * singles.shape[1] * entries))
        parts = [
            self._some_tiles(view, singles, slashes, starts, latest, low[:, t : t + step], high[:, t : t + step])
            for t in range(0, low.shape[1], step)
        ]
        table = glue([(ptr, start) for ptr, start, _, _ in parts])
        full = torch.cat([full for _, _, full, _ in parts], -1)
        return Launch(view.index(self.tile, self.run, (*table, full), glue([columns for *_, columns in parts])))

    def _some_tiles(
        self, view: View, singles: Tensor, slashes: Tensor, starts: Tensor, latest: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        n, run, first = view.width, self.run, view.first[:, None, None, None]
        lowest, highest = low[:, None, :, None], high[:, None, :, None]
        begin = starts[:, :, None] + (lowest - n)
        keep = (begin >= 0) & (begin <= highest) & (begin + run > first)
        place = singles[:, :, None] - (lowest - n)  # [B, H, T, C]
        nearest = latest.gather(-1, place.flatten(2).clamp_max(latest.shape[-1] - 1)).view(place.shape)
        inside = (place < nearest + run) & (nearest + (lowest - n) >= 0)
        if not view.consecutive:  # rows too far apart for runs as long as the tile
            apart = highest - lowest >= self.tile
            blocks = slash_blocks(slashes, low, high, run)
            block = torch.arange(0, n, run, device=low.device).expand(blocks.shape)
            within = blocks.gather(-1, (singles // run)[:, :, None].expand(place.shape))
            inside = torch.where(apart, within, inside)
            begin = torch.cat([begin, block], -1)
            keep = torch.cat([keep & ~apart, blocks & apart & (block <= highest) & (block + run > first)], -1)
        full = (begin + run - 1 <= lowest) & (begin >= first)
        ordered = view.keys is not None or view.prefill.k_start is None
        columns = csr(~inside & (singles[:, :, None] <= highest) & (singles[:, :, None] >= first), singles[:, :, None])
        return *runs(keep, begin, full, full_first=ordered), columns
