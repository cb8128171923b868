"""Sparse attention without a compiler: keys of some tiles copied next to each other, product, softmax, product.

Tiles that read about as many keys go together, whatever their sample and head, so calls are few and large; scores are
fp32 (fp64 for fp64 inputs), made in pieces that stay in a core's cache. Runs on any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .index import Keys, SparseIndex
from .lists import KeyLists, Kept, Rows
from .merge import merge

SCORES = 1 << 19  # scores per thread at a time: 2 MB
WIDTH = 1 << 11  # keys per softmax; longer lists are merged by their log-sum-exps
UNIT = 2.0**100  # of masks: scores are capped by (limit - position + 1/2) units; fp32 holds that exactly up to 2^23
UNSEEN = -1e29  # what is masked scores lower


def gather_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: SparseIndex,
    *,
    scale: float | None = None,
    causal_shift: int = 0,
    key_min: int | Tensor = 0,
    row_step: int = 1,
    q_len: Tensor | None = None,
    k_len: Tensor | None = None,
    k_start: Tensor | None = None,
    keys: Keys | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`sparse_attention` on any device. Keys that no row of a tile sees are not read, so they may hold NaN."""
    lists = KeyLists(q, k, v, index, keys or Keys(), causal_shift, key_min, row_step, q_len, k_len, k_start)
    softmax = _Softmax(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, softcap)
    out = q.new_zeros(lists.end + 1, q.shape[-1])  # the last row takes what is none, and is cut off
    lse = q.new_full((lists.end + 1,), -torch.inf, dtype=torch.float32) if return_lse else None
    for tiles in lists.alike():
        rows = lists.rows(tiles)
        softmax(rows, lists.keys_of(tiles, rows), out, lse)
    shape = (q.shape[0], q.shape[2], lists.heads.numel())
    result = out[: lists.end].view(*shape, -1).transpose(1, 2)
    return result if lse is None else (result, lse[: lists.end].view(shape).transpose(1, 2))


class _Softmax:
    """Attention of tiles whose keys are known; keeps its memory, as fresh pages cost more than what is done on them."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None) -> None:
        self.q, self.k, self.v, self.scale, self.softcap = _table(q), _table(k), _table(v), scale, softcap
        self.exact = torch.promote_types(q.dtype, torch.float32)
        self.memory: dict[str, Tensor] = {}

    def __call__(self, rows: Rows, kept: Kept, out: Tensor, lse: Tensor | None) -> None:
        """Rows that see something are written to `out` [*, D] and `lse` [*]."""
        count, height, n = *rows.at.shape, kept.position.shape[1]
        width = min(n, WIDTH)
        step = max(1, SCORES * torch.get_num_threads() // (height * width))
        weigh = lse is not None or n > width or kept.classes is not None
        none = len(out) - 1
        seeing = rows.target.where(rows.limit >= kept.position.amin(1, keepdim=True), none)
        masks = [
            (part, self._cap(rows.limit[:1], kept.position[:1, part]).clone() if alike else None)
            for part, alike in kept.masked
        ]
        for first in range(0, count, step):
            g = slice(first, first + step)
            q = self._take("q", self.q, rows.at[g])
            for at in range(0, n, width):
                w = slice(at, min(at + width, n))
                scores = self._scores(q, self._take("k", self.k, kept.at_k[g, w]), rows.limit[g], kept, masks, g, w)
                weights = torch.softmax(scores, -1, out=self._room("weights", scores.shape))
                part = self._room("part" if at else "first part", q.shape)
                torch.bmm(weights, self._take("v", self.v, kept.at_v[g, w]), out=part)
                if weigh:
                    share = scores.amax(-1) - weights.amax(-1).log()  # log-sum-exp: log w = s - it, where w is greatest
                    result, mass = merge(result, mass, part, share) if at else (part, share)
                else:
                    result = part
            target = seeing[g].where(mass > UNSEEN, none) if weigh else seeing[g]
            out.index_copy_(0, target.flatten(), result.flatten(0, 1).to(out.dtype))
            if lse is not None:
                lse.index_copy_(0, target.flatten(), mass.flatten().float())

    def _scores(
        self, q: Tensor, k: Tensor, limit: Tensor, kept: Kept, masks: list[tuple[slice, Tensor | None]], g: slice, w: slice
    ) -> Tensor:
        """[g, R, w] of tiles g and keys w, masked."""
        scores = self._room("scores", (*q.shape[:2], k.shape[1]))
        scores.baddbmm_(q, k.transpose(1, 2), beta=0, alpha=self.scale)
        if self.softcap is not None:
            scores.div_(self.softcap).tanh_().mul_(self.softcap)
        if kept.bias is not None:
            scores += kept.bias[g, None, w]
        for part, cap in masks:
            inner, outer = _overlap(part, w)
            seen = scores[..., inner]
            if cap is None:
                cap = self._cap(limit, kept.position[g, outer])
            else:
                cap = cap[..., outer.start - part.start : outer.stop - part.start]
            torch.minimum(seen, cap, out=seen)
        if kept.classes is not None:
            part, mine, theirs = kept.classes
            inner, outer = _overlap(part, w)
            other = mine[g, :, None] != theirs[g, None, outer.start - part.start : outer.stop - part.start]
            scores[..., inner].masked_fill_(other, 2 * UNSEEN)
        return scores

    def _cap(self, limit: Tensor, position: Tensor) -> Tensor:
        """[G, R, n]: above every score where position [G, n] <= limit [G, R], else below UNSEEN."""
        high, place = ((x.to(self.exact) + y) * UNIT for x, y in ((limit, 0.5), (position, 0)))
        return torch.sub(high[..., None], place[:, None], out=self._room("cap", (*limit.shape, position.shape[1])))

    def _take(self, name: str, table: Tensor, at: Tensor) -> Tensor:
        """[G, n, D] in fp32 or better: rows of a table that start at elements `at` [G, n]."""
        found = torch.index_select(table, 0, at.flatten(), out=self._room(name, (at.numel(), table.shape[1]), table.dtype))
        if table.dtype != self.exact:
            found = self._room(name + " exact", found.shape).copy_(found)
        return found.view(*at.shape, -1)

    def _room(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        size = math.prod(shape)
        if name not in self.memory or self.memory[name].numel() < size:
            self.memory[name] = self.q.new_empty(size, dtype=dtype or self.exact)
        return self.memory[name][:size].view(shape)


def _table(x: Tensor) -> Tensor:
    """[*, D] whose row i starts at element i of x [B, H, S, D]: rows of any strides by one index, without a copy."""
    span = sum((size - 1) * stride for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True))
    return x.as_strided((span + 1, x.shape[-1]), (1, 1))


def _overlap(part: slice, window: slice) -> tuple[slice, slice]:
    """What two ranges share, counted from the window's start and from zero; may be empty."""
    start = max(part.start, window.start)
    stop = max(start, min(part.stop, window.stop))
    return slice(start - window.start, stop - window.start), slice(start, stop)
