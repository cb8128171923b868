"""XAttention: let sums along antidiagonals of small cells stand for the attention of a block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlmopt.core import setting

from ..sparse_attention.index import Launch, tile_count
from .base import Pattern, blocks_to_index, register
from .blocks import block_grid, by_mass, chunks, key_real, padding_free, products
from .prefill import Prefill


@register("x_attention")
@dataclass(frozen=True, kw_only=True)
class XAttention(Pattern):
    """Keep the blocks that hold a share of the attention between strided cells, at 1 / (2 * stride) of dense cost.

    XAttention: Block Sparse Attention with Antidiagonal Scoring (arXiv 2503.16428). Every key and every query of a
    stride x stride cell enters its sum once, so vertical and slash lines are both seen. The sink block and the diagonal
    always stay and count towards the threshold. The released code has the sink in its estimate, and keeps one block
    more in every row of its first chunk of queries, an accident of its chunks; neither is part of the pattern.
    """

    reads = "sums of logits along antidiagonals"

    tile: int = setting(128, "Query rows that share their keys: 16, 32, 64, 128 or 256.", "int")
    run: int = setting(128, "Neighbouring keys that are read together: 16, 32, 64, 128 or 256.", "int")
    stride: int = setting(16, "Side of a cell in tokens; tile and run are multiples of it.", "int", min=1)
    threshold: float = setting(
        0.9, "Share of the estimated attention that the kept blocks hold.", "float", above=0, max=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile % self.stride or self.run % self.stride:
            raise ValueError(
                f"{self.name}: stride {self.stride} must divide tile {self.tile} and run {self.run}; try 8 or 16"
            )

    @property
    def is_identity(self) -> bool:
        return self.threshold == 1

    def build(self, prefill: Prefill) -> list[Launch]:
        grid = block_grid(prefill, self.tile, self.run)
        share = antidiagonal_share(prefill, self.tile, self.run, self.stride)
        keep = by_mass(share, self.threshold, grid.visible, grid.forced)
        return [Launch(blocks_to_index(keep, self.tile, self.run, prefill))]


def antidiagonal_share(prefill: Prefill, tile: int, run: int, stride: int) -> Tensor:
    """Return fp32 [B, H, T, N]: the attention of each tile to each block as cells see it.

    A tile's blocks sum to 1, padding to 0. Cell (i, j) scores the mean logit of its antidiagonal,
    q[i * t + t - 1 - u] . k[j * t + u] over u < t = `stride`, which is one product of vectors of t * D numbers; softmax
    over the cells j that any row of i sees. Padding counts 0. Cells with keys of the sink take no part.
    """
    keys = cells(prefill.k, padding_free(prefill, key_real(prefill)), stride, run)  # [B, Hk, C, t * D]
    q = prefill.q if prefill.all_heads else prefill.q[:, prefill.heads]
    real = padding_free(prefill, prefill.real)
    first_key = torch.arange(keys.shape[2], device=q.device) * stride
    inside = (first_key < prefill.key_end[:, None]) & (first_key >= prefill.sink_end[:, None])
    shape = (*q.shape[:2], tile_count(prefill.rows, tile), tile_count(prefill.width, run))
    share = q.new_zeros(shape, dtype=torch.float32)
    for start, stop, limit in chunks(prefill, tile, shape[0] * shape[1] * tile // stride**2):
        rows = slice(start * tile, min(stop * tile, prefill.rows))
        queries = cells(q[:, :, rows], real if real is None else real[:, rows], stride, tile, flip=True)
        count = tile_count(limit, run) * run // stride
        seen = inside[:, None, :count] & (first_key[:count] <= last_real(prefill, start * tile, stop * tile, stride))
        logits = products(prefill, queries * (prefill.scale / stride), keys[:, :, :count]).float()
        weights = logits.masked_fill_(~seen[:, None], -torch.inf).softmax(-1).nan_to_num_(0)
        sums = weights.unflatten(3, (-1, run // stride)).sum(4).unflatten(2, (-1, tile // stride)).sum(3)
        share[:, :, start:stop, : sums.shape[3]] = sums
    return share / share.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def cells(x: Tensor, real: Tensor | None, stride: int, multiple: int, flip: bool = False) -> Tensor:
    """Join `stride` neighbours of x [B, h, S, D] into one vector.

    Shape: [B, h, ceil(S / multiple) * multiple / stride, stride * D]; a view of contiguous x where nothing is padded.
    `flip` reverses the order inside a cell.
    """
    if real is not None:
        x = x.masked_fill(~real[:, None, :, None], 0)
    if x.shape[2] % multiple:
        x = pad(x, (0, 0, 0, -x.shape[2] % multiple))
    x = x.unflatten(2, (-1, stride))
    return (x.flip(3) if flip else x).flatten(3)


def last_real(prefill: Prefill, start: int, stop: int, stride: int) -> Tensor:
    """Return Long[B, cells, 1]: the position of the last real row of each cell of rows start..stop, -1 without one."""
    row = torch.arange(start, stop, stride, device=prefill.device)
    last = torch.minimum(row + stride, prefill.row_end[:, None]) - 1
    real = (last >= row) & (last + prefill.offset[:, None] >= prefill.key_first[:, None])
    return torch.where(real, last + prefill.offset[:, None], -1)[..., None]
