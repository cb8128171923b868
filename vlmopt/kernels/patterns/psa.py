"""PSA: read a block of middling weight at a coarser level instead of dropping it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, pad

from vlmopt.core import setting

from ..sparse_attention.index import Keys, Launch, tile_count
from .base import LONGEST, Pattern, blocks_to_index, register, tile_span
from .blocks import before_in_order, block_grid, pool, spread
from .prefill import Prefill
from .x_attention import antidiagonal_share

LEVELS = (1, 2, 4, 8)  # keys that one stands for


@register("psa")
@dataclass(frozen=True, kw_only=True)
class PSA(Pattern):
    """Replace keys and values of a block by means of 1, 2, 4 or 8 neighbours, or leave them out, by the block's rank.

    PSA: Pyramid Sparse Attention for Efficient Video Understanding and Generation (arXiv 2512.04025). A mean of l keys
    gets ln l on its logit, for the l that it stands for, and is seen from its last one on. Blocks come from the
    antidiagonal scores of XAttention. The place of a block is the share that lies *before* it, after the sink block and
    the diagonal, so that a block that holds everything stays. These two and the last rows are exact. The pooled copies
    travel with the launch behind a copy of keys and values.
    """

    reads = "sums of logits along antidiagonals; likeness of neighbouring keys"

    tile: int = setting(128, "Query rows that share their keys: 16, 32, 64, 128 or 256.", "int")
    run: int = setting(32, "Neighbouring keys, pooled or not, that are read together: 16, 32, 64, 128 or 256.", "int")
    block: int = setting(
        128, "Keys that share a level; a multiple of run times the coarsest level.", "int", min=1, max=LONGEST
    )
    stride: int = setting(
        8, "Side of a cell of the scores in tokens; tile and block are multiples of it.", "int", min=1
    )
    energy: tuple[float, ...] = setting(
        (0.7, 0.8, 0.9, 0.9),
        "Share of attention up to which levels 1, 2, 4, 8 reach, ascending.",
        "floats",
        min=0,
        max=1,
    )
    likeness: tuple[float, ...] = setting(
        (0.75, 0.7, 0.7),
        "Mean cosine of the first and last of 2, 4, 8 keys above which these may be pooled.",
        "floats",
        min=-1,
        max=1,
    )
    exact_tail: int = setting(512, "Last rows that read every key.", "int", min=0)
    paper_compat: bool = setting(
        False,
        "As released: the rank of a block includes its own share, so that one with nearly all attention is left out; a "
        "coarse level needs only its own cosine, not those of finer levels.",
        "bool",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.energy) != 4 or list(self.energy) != sorted(self.energy):
            raise ValueError(f"{self.name}: energy must be four ascending shares, for 1, 2, 4, 8; got {self.energy}")
        if len(self.likeness) != 3:
            raise ValueError(f"{self.name}: likeness must be three cosines, for 2, 4 and 8; got {self.likeness}")
        if self.block % (self.run * max(self.levels)):
            raise ValueError(
                f"{self.name}: block {self.block} must be a multiple of run {self.run} times the coarsest level "
                f"{max(self.levels)}; a smaller run always fits"
            )
        if self.tile % self.stride or self.block % self.stride:
            raise ValueError(f"{self.name}: stride {self.stride} must divide tile {self.tile} and block {self.block}")

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels that the energies leave room for; 1 is always among them."""
        floor = (0.0, *self.energy)
        return (1, *(LEVELS[i] for i in range(1, 4) if self.energy[i] > floor[i]))

    @property
    def is_identity(self) -> bool:
        return self.energy[0] == 1

    def build(self, prefill: Prefill) -> list[Launch]:
        level = self.block_levels(prefill)
        low = tile_span(prefill, self.tile)[0][:, None, :, None]
        start = torch.arange(level.shape[-1], device=level.device) * self.block
        whole = (start + self.block - 1 <= low) & (start >= prefill.key_first[:, None, None, None])
        parts = [(level == stand).repeat_interleave(self.block // stand // self.run, -1) for stand in self.levels]
        full = [whole.repeat_interleave(self.block // stand // self.run, -1) for stand in self.levels]
        index = blocks_to_index(torch.cat(parts, -1), self.tile, self.run, prefill, full=torch.cat(full, -1))
        position, bias = stands_for(level.shape[-1] * self.block, self.levels, level.device)
        keys = Keys(position.expand(prefill.batch, 1, -1), bias.expand(prefill.batch, 1, -1))
        k, v = (pyramid(x, self.levels, self.block) for x in (prefill.k, prefill.v))
        return [Launch(index, k=k, v=v, keys=keys)]

    def block_levels(self, prefill: Prefill) -> Tensor:
        """Return Long[B, H, T, N]: how many keys one key stands for, 1, 2, 4 or 8; 0: left out."""
        grid = block_grid(prefill, self.tile, self.block)
        share = antidiagonal_share(prefill, self.tile, self.block, self.stride)
        if self.paper_compat:
            order, before = before_in_order(share, torch.zeros_like(grid.forced))
            held = before + share.gather(-1, order)
        else:
            order, held = before_in_order(share, grid.forced)
        place = held / share.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        reach = torch.tensor(
            [inf if end >= 1 else end for end in self.energy], device=place.device, dtype=torch.float32
        )
        slot = torch.bucketize(place, reach, right=not self.paper_compat)
        level = torch.tensor([*LEVELS, 0], device=place.device)[slot]
        likeness = {stand: self.likeness[LEVELS.index(stand) - 1] for stand in self.levels[1:]}
        coarsest = coarsest_level(prefill, self.block, likeness, alone=self.paper_compat)
        coarsest = coarsest[:, prefill.key_heads, None]  # [B, H, 1, N]
        level = torch.minimum(spread(order, level), coarsest)
        last = tile_span(prefill, self.tile)[1] >= prefill.key_end[:, None] - self.exact_tail  # [B, T]
        return level.masked_fill(grid.forced | last[:, None, :, None], 1).masked_fill(~grid.visible, 0)


def coarsest_level(prefill: Prefill, block: int, likeness: dict[int, float], alone: bool = False) -> Tensor:
    """Return Long[B, Hk, N]: the coarsest level of `likeness` that a block bears, 1 for a block with padding.

    It bears a level if at that and (unless `alone`) at every finer one the mean cosine between the first and the last
    key of a group exceeds what `likeness` asks.
    """
    whole = prefill.width // block
    start = torch.arange(whole, device=prefill.device) * block
    real = (start >= prefill.key_first[:, None]) & (start + block <= prefill.key_end[:, None])
    alike = real[:, None]  # [B, 1, N]
    level = torch.ones(prefill.batch, prefill.k.shape[1], whole, dtype=torch.long, device=prefill.device)
    for stand, least in likeness.items():
        groups = prefill.k[:, :, : whole * block].unflatten(2, (whole, block // stand, stand))
        cosine = cosine_similarity(groups[..., 0, :].float(), groups[..., -1, :].float(), -1).mean(-1)
        bears = alike & (cosine > least)
        level = level.masked_fill(bears, stand)
        alike = alike if alone else bears
    return pad(level, (0, tile_count(prefill.width, block) - whole), value=1)


def pyramid(x: Tensor, levels: tuple[int, ...], block: int) -> Tensor:
    """Return x [B, Hk, W, D] and its means over l neighbours, each as N whole blocks.

    Shape: [B, Hk, sum of N * block / l, D].
    """
    slots = tile_count(x.shape[2], block) * block
    means = [x if stand == 1 else pool(x, None, stand).to(x.dtype) for stand in levels]
    return torch.cat(
        [pad(y, (0, 0, 0, slots // stand - y.shape[2])) for y, stand in zip(means, levels, strict=True)], 2
    )


def stands_for(slots: int, levels: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return for every slot of `pyramid` the last key it stands for (Long), and ln of their number (fp32)."""
    position = [torch.arange(stand - 1, slots, stand, device=device) for stand in levels]
    bias = [torch.full((slots // stand,), log(stand), device=device, dtype=torch.float32) for stand in levels]
    return torch.cat(position), torch.cat(bias)
