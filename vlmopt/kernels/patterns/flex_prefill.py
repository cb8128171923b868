"""FlexPrefill: let every head decide by its last rows whether to trust means over blocks, and how much to keep."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlmopt.core import setting

from ..sparse_attention.index import Launch, tile_count
from .base import Pattern, blocks_to_index, register, tile_span
from .blocks import block_grid, by_block, by_mass, by_rank, pool_keys, pool_rows
from .prefill import Prefill
from .probe import offset_mass, probe_rows
from .view import View


@register("flex_prefill")
@dataclass(frozen=True, kw_only=True)
class FlexPrefill(Pattern):
    """Keep query-aware blocks where block means predict the last rows' attention, vertical and slash blocks elsewhere.

    FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient Long-Sequence Inference (arXiv 2502.20766). A
    query-aware head ranks all blocks of its map at once, so that some rows may get little. Differences to the released
    code: coverage is counted in blocks, not in tokens that are then divided by 128. A slash is scored by the distance
    between blocks that its cells really have, so an offset between two multiples of `run` brings in both blocks that it
    crosses. A block weighs in the prediction by the pairs of row and key that the probe sees of it, else the causal
    limit inside the last blocks looks like an error of the means. The sink is left out of all estimates.
    """

    reads = "attention of the last rows; mean queries and keys of blocks"

    tile: int = setting(128, "Query rows that share their keys: 16, 32, 64, 128 or 256.", "int")
    run: int = setting(128, "Neighbouring keys that are read together: 16, 32, 64, 128 or 256.", "int")
    coverage: float = setting(0.9, "Share gamma of the estimated attention that is kept.", "float", above=0, max=1)
    divergence: float = setting(
        0.1, "Jensen-Shannon distance tau below which a head is query-aware; 0: no head.", "float", min=0, max=1
    )
    min_budget: int = setting(1024, "Tokens that vertical blocks, and slash blocks, hold at least.", "int", min=1)
    probe: int = setting(128, "Last rows whose attention is read.", "int", min=1)

    @property
    def is_identity(self) -> bool:
        return self.coverage == 1

    def build(self, prefill: Prefill) -> list[Launch]:
        grid = block_grid(prefill, self.tile, self.run)
        keys = pool_keys(prefill, self.run)[:, prefill.key_heads].mT * prefill.scale  # [B, H, D, N]
        vertical, slash, mean, seen = self.last_rows(prefill)
        predicted = ((mean @ keys)[:, :, 0] + seen.log()).softmax(-1)
        aware = jensen_shannon(predicted, vertical)[..., None] < self.divergence  # [B, H, 1]

        ever, sink = grid.visible.any(2), grid.first.any(2)  # [B, 1, N]
        least = tile_count(self.min_budget, self.run)
        near = torch.arange(slash.shape[-1], device=slash.device) == 0
        columns = by_rank(vertical, least, ever, sink) | ~aware & by_mass(vertical, self.coverage, ever, sink)
        bands = by_rank(slash, least, near | ~near, near) | ~aware & by_mass(slash, self.coverage, near | ~near, near)
        keep = (columns[:, :, None] | at_distance(bands, prefill, self.tile, self.run)) & grid.visible

        logits = (pool_rows(prefill, self.tile) @ keys).masked_fill_(~grid.visible, -torch.inf)
        share = logits.softmax(-1).nan_to_num_(0).flatten(2)  # of tiles that see nothing: 0
        whole = [mask.expand_as(logits).flatten(2) for mask in (grid.visible, grid.forced)]
        keep |= (aware & by_mass(share, self.coverage, *whole)).view_as(keep)
        return [Launch(blocks_to_index(keep, self.tile, self.run, prefill))]

    def last_rows(self, prefill: Prefill) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what the probe's rows look at, fp32, all but the mean query without the sink.

        Attention by block [B, H, N] and by distance [B, H, N + 1], the mean query [B, H, 1, D], and the pairs of a row
        and a key that the probe sees, by block [B, 1, N].
        """
        view = View(prefill)
        last, position = view.last(self.probe)  # Long[B, R], -1 where a sample has fewer rows
        real = (last >= 0)[:, None, :, None]
        mean = view.q(last.clamp_min(0)).float().masked_fill(~real, 0).sum(2, keepdim=True) / real.sum(2, keepdim=True)
        weights = probe_rows(prefill, self.probe, sink=False)  # [B, H, R, W]
        lines = by_block(weights.sum(2), self.run), by_distance(offset_mass(weights, position), self.run)
        vertical, slash = (mass / real.sum(2).clamp_min(1) for mass in lines)  # each row has a mass of 1
        key = torch.arange(prefill.width, device=last.device)
        pairs = (key <= position[..., None]) & (key >= prefill.sink_end[:, None, None])
        return vertical, slash, mean, by_block(pairs.sum(1, keepdim=True), self.run).float()


def by_distance(mass: Tensor, run: int) -> Tensor:
    """Return fp32 [B, H, N + 1]: the mass of offsets [B, H, W] by how many blocks lie between row and key.

    Offset o = d * run + f reaches distance d from the run - f rows of a block that lie far enough in it, distance d + 1
    from the f others.
    """
    bands = pad(mass, (0, -mass.shape[-1] % run)).unflatten(-1, (-1, run))
    farther = bands @ (torch.arange(run, device=mass.device, dtype=mass.dtype) / run)
    return pad(bands.sum(-1) - farther, (0, 1)) + pad(farther, (1, 0))


def at_distance(bands: Tensor, prefill: Prefill, tile: int, run: int) -> Tensor:
    """Return Bool[B, H, T, N]: blocks at a kept distance Bool[B, H, N + 1] from a block of some row of the tile."""
    low, high = (edge.clamp_min(0) // run for edge in tile_span(prefill, tile))  # [B, T]
    block = torch.arange(bands.shape[-1] - 1, device=bands.device)
    keep = bands.new_zeros(*bands.shape[:2], low.shape[1], len(block))
    for step in range((tile - 2) // run + 2):  # blocks that `tile` rows can touch: one or two where tile <= run
        distance = torch.minimum(low + step, high)[..., None] - block  # [B, T, N]
        at = distance.clamp_min(0).flatten(1)[:, None].expand(-1, bands.shape[1], -1)
        keep |= bands.gather(2, at).view_as(keep) & (distance >= 0)[:, None]
    return keep


def jensen_shannon(a: Tensor, b: Tensor) -> Tensor:
    """Return [...]: square root of the Jensen-Shannon divergence, in nats, of distributions over the last axis."""
    middle = (a + b) / 2
    entropy: list[Tensor] = [torch.special.entr(x).sum(-1) for x in (a, b, middle)]
    return (entropy[2] - (entropy[0] + entropy[1]) / 2).clamp_min(0).sqrt()
