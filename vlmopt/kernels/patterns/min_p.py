"""Min-p columns: keep single keys that the mean query of a tile likes nearly as much as the best one nearby."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad

from vlmopt.core import setting

from ..sparse_attention.index import Launch
from .bands import band_blocks, block_table
from .base import register
from .tables import ENTRIES, Columns, csr, glue
from .view import View, ViewPattern

KEYS = 16  # keys between updates of the running maximum
GROUP = 16  # updates after which it starts anew


@register("min_p")
@dataclass(frozen=True, kw_only=True)
class MinP(ViewPattern):
    """Keep key j for a tile if mean(q) . k_j / sqrt(D) >= running maximum - ln(1 / tau).

    VecAttention (arXiv 2603.29494). The maximum runs over groups of 256 keys, 16 keys at a time, so each group is
    decided by itself, without softmax or sort. The first `sink` keys and those of the tile itself always stay; the
    maximum starts behind them, since an attention sink would leave nothing of its group.
    """

    reads = "mean query of each tile"

    tau: float = setting(0.87, "Least probability of a key, as a share of its group's best.", "float", above=0, max=1)
    sink: int = setting(64, "First keys that every row keeps.", "int", min=0)

    def select(self, view: View) -> list[Launch]:
        blocks = band_blocks(view, self.tile, self.run, self.sink, 1).expand(-1, len(view.prefill.heads), -1, -1)
        table = block_table(view, blocks, self.tile, self.run)
        return [Launch(view.index(self.tile, self.run, table, self.columns(view)))]

    def columns(self, view: View) -> Columns:
        """Return the offsets and key slots of the single keys.

        A quarter of the tiles at a time, so that few of them score keys of the future.
        """
        prefill = view.prefill
        low, high = view.span(self.tile)
        begin = -(-(view.first + self.sink) // self.run) * self.run if self.sink else view.first  # after the sink
        end = torch.where(high < 0, 0, low // self.run * self.run)  # where the tile's own blocks begin
        start = torch.maximum(begin, view.sink_end)  # of the maximum
        tiles = low.shape[1]
        step = max(1, min(ENTRIES // (prefill.batch * len(prefill.heads) * view.width), -(-tiles // 4)))
        parts = []
        for t in range(0, tiles, step):
            seen = prefill.width - prefill.rows + (t + step) * self.tile if view.unpadded else view.width
            scores = mean_scores(view, self.tile, slice(t, min(t + step, tiles)), min(seen, view.width))
            key = torch.arange(scores.shape[-1], device=scores.device)
            inside = (key >= begin[:, None, None]) & (key < end[:, t : t + step, None])
            parts.append(csr(self.near_best(scores, start) & inside[:, None]))
        return glue(parts)

    def near_best(self, scores: Tensor, start: Tensor) -> Tensor:
        """Return Bool[B, H, T, N]: scores [B, H, T, N] within ln(1 / tau) of the running maximum.

        It runs over 16 keys at a time, from the first 16 that do not begin left of `start` Long[B]; all before it pass.
        """
        n = scores.shape[-1]
        short = -n % (KEYS * GROUP)
        groups = pad(scores, (0, short), value=-torch.inf) if short else scores
        best = max_pool1d(groups.flatten(0, 2), KEYS).view(*scores.shape[:3], -1)
        before = torch.arange(0, groups.shape[-1], KEYS, device=scores.device) < start[:, None, None, None]
        best = best.masked_fill_(before, -torch.inf).unflatten(-1, (-1, GROUP)).cummax(-1).values
        least = (best + math.log(self.tau)).flatten(-2)[..., None]
        near: Tensor = groups.unflatten(-1, (-1, KEYS)) >= least
        return near.flatten(-2)[..., :n]


def mean_scores(view: View, tile: int, tiles: slice, keys: int) -> Tensor:
    """Return fp32 [B, H, T', keys]: scaled logits of each tile's mean real query over the first key slots; no mask."""
    prefill = view.prefill
    rows = slice(tiles.start * tile, min(tiles.stop * tile, view.slots))
    q = view.q(rows)
    if not view.unpadded:
        q = q.masked_fill(~view.real[:, None, rows, None], 0)
    short = -q.shape[2] % tile
    q = (pad(q, (0, 0, 0, short)) if short else q).unflatten(2, (-1, tile)).sum(3, dtype=torch.float32)
    real = pad(view.real[:, rows], (0, short)).unflatten(1, (-1, tile)).sum(-1).clamp_min(1).float()
    q = (q * (prefill.scale / real[:, None, :, None])).to(view.k.dtype)
    k = view.k[:, :, :keys] if prefill.all_heads else view.k[:, prefill.key_heads, :keys]
    scores: Tensor = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3) @ k.transpose(-1, -2)
    return scores.float().view(*q.shape[:3], keys)
