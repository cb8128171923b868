"""ProxyAttn: let one mean head per group score every fourth token, and every head decide how much it needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlmopt.core import setting

from ..sparse_attention.index import Launch, tile_count
from .base import Pattern, blocks_to_index, register
from .blocks import block_grid, by_block, by_mass, by_rank, chunks
from .prefill import Prefill
from .probe import probe_rows


@register("proxy_attn")
@dataclass(frozen=True, kw_only=True)
class ProxyAttn(Pattern):
    """Keep the blocks with the largest single attention of a proxy head, as many as the head itself needs.

    ProxyAttn: Guided Sparse Attention via Representative Heads (arXiv 2509.24745). The proxy of a group is the mean of
    its queries and the mean of its keys, over every query head of the layer and not only those built for. A head's
    share of the visible blocks is what its own last rows need to reach `coverage`, the sink left out; the sink block
    and the diagonal count.
    """

    reads = "attention of mean heads at every few tokens; attention of the last rows"

    tile: int = setting(128, "Query rows that share their keys: 16, 32, 64, 128 or 256.", "int")
    run: int = setting(128, "Neighbouring keys that are read together: 16, 32, 64, 128 or 256.", "int")
    groups: int = setting(1, "Proxy heads; divides the number of key heads.", "int", min=1)
    stride: int = setting(4, "One of so many tokens is scored; tile and run are multiples of it.", "int", min=1)
    coverage: float = setting(
        0.95, "Share gamma of the last rows' attention that sets the budget.", "float", above=0, max=1
    )
    min_budget: int = setting(2048, "Keys per tile of rows at least, in tokens.", "int", min=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile % self.stride or self.run % self.stride:
            raise ValueError(
                f"{self.name}: stride {self.stride} must divide tile {self.tile} and run {self.run}; try 4 or 8"
            )

    @property
    def is_identity(self) -> bool:
        return self.coverage == 1

    def check_heads(self, key_heads: int) -> None:
        if key_heads % self.groups:
            raise ValueError(f"{self.name}: groups must divide the {key_heads} key heads, got {self.groups}; try 1")

    def build(self, prefill: Prefill) -> list[Launch]:
        self.check_heads(prefill.k.shape[1])
        grid = block_grid(prefill, self.tile, self.run)
        group = self.groups * prefill.heads // prefill.q.shape[1]
        scores = proxy_scores(prefill, self.tile, self.run, self.stride, self.groups)[:, group]
        seen = grid.visible.sum(-1)  # [B, 1, T]
        ever = grid.visible.any(2)  # [B, 1, N]
        own = by_block(probe_rows(prefill, self.tile, sink=False).mean(2), self.run)
        needed = by_mass(own, self.coverage, ever, grid.first.any(2)).sum(-1, keepdim=True)  # [B, H, 1]
        count = -(-needed * seen // ever.sum(-1, keepdim=True).clamp_min(1))
        keep = by_rank(scores, count.clamp_min(tile_count(self.min_budget, self.run)), grid.visible, grid.forced)
        return [Launch(blocks_to_index(keep, self.tile, self.run, prefill))]


def proxy_scores(prefill: Prefill, tile: int, run: int, stride: int, groups: int) -> Tensor:
    """Return fp32 [B, groups, T, N]: the largest attention of a mean head inside each block.

    Taken at every `stride`-th row and key; the sink takes no part. The groups divide the key heads.
    """
    keys = mean_head(prefill.k[:, :, ::stride], groups)  # [B, g, ceil(W / stride), D]
    key = torch.arange(keys.shape[2], device=keys.device) * stride
    inside = (key >= prefill.sink_end[:, None]) & (key < prefill.key_end[:, None])
    shape = (prefill.batch, groups, tile_count(prefill.rows, tile), tile_count(prefill.width, run))
    scores = keys.new_zeros(shape, dtype=torch.float32)
    for start, stop, limit in chunks(prefill, tile, prefill.batch * groups * tile // stride**2):
        rows = slice(start * tile, min(stop * tile, prefill.rows), stride)
        count = tile_count(limit, stride)
        logits = (mean_head(prefill.q[:, :, rows], groups) * prefill.scale @ keys[:, :, :count].mT).float()
        seen = inside[:, None, :count] & (key[:count] <= prefill.position[:, rows, None])
        seen &= prefill.real[:, rows, None]
        weights = logits.masked_fill_(~seen[:, None], -torch.inf).softmax(-1).nan_to_num_(0)
        weights = pad(weights, (0, -count % (run // stride), 0, -weights.shape[2] % (tile // stride)))
        cells = weights.unflatten(3, (-1, run // stride)).unflatten(2, (-1, tile // stride))
        largest = cells.amax((3, 5))
        scores[:, :, start:stop, : largest.shape[3]] = largest
    return scores


def mean_head(x: Tensor, groups: int) -> Tensor:
    """Return [B, groups, S, D]: mean over each group of neighbouring heads of x [B, h, S, D]."""
    means: Tensor = x.unflatten(1, (groups, -1)).mean(2, dtype=torch.float32)
    return means.to(x.dtype)
