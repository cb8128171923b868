"""Sparse attention without a compiler: keys of some tiles copied next to each other, product, softmax, product.

Tiles that read about as many keys go together, whatever their sample and head, so calls are few and large; scores are
fp32 (fp64 for fp64 inputs), made in pieces that stay in a core's cache. Runs on any device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .index import Launch
from .inputs import AttentionInputs, shared_refusal
from .lists import Kept, KeyLists, Rows
from .merge import merge

SCORES = 1 << 18  # scores per thread at a time: 1 MB
WIDTH = 1 << 12  # keys per softmax; longer lists are merged by their log-sum-exps
UNIT = 2.0**100  # of masks: scores are capped by (limit - position + 1/2) units; fp32 holds that exactly up to 2^23
UNSEEN = -1e29  # what is masked scores lower


def refusal(inputs: AttentionInputs, launch: Launch, return_lse: bool = False) -> str:
    """Return why this back-end cannot run such a call, in words; empty if it can."""
    return shared_refusal("gather", inputs, launch.index)


def gather_attention(
    inputs: AttentionInputs, launch: Launch, return_lse: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute `sparse_attention` on any device.

    Keys that no row of a tile sees are not read, so they may hold NaN.

    Returns:
        [B, H, Sq, D] in the dtype of q; with `return_lse` also fp32 [B, H, Sq].

    Raises:
        ValueError: a gradient is asked for, or slashes meet a grid of reordered keys.
    """
    q = inputs.q
    if reason := refusal(inputs, launch):
        raise ValueError(reason)
    lists = KeyLists(inputs, launch)
    call = _Call(inputs)
    out = q.new_zeros(lists.end + 1, q.shape[-1])  # the last row takes what is none, and is cut off
    lse = q.new_full((lists.end + 1,), -torch.inf, dtype=torch.float32) if return_lse else None
    for tiles in lists.alike():
        rows = lists.rows(tiles)
        _Tiles(call, rows, lists.keys_of(tiles, rows)).attend(out, lse)
    shape = (q.shape[0], lists.heads.numel(), q.shape[2])
    result = out[: lists.end].view(*shape, -1)
    return result if lse is None else (result, lse[: lists.end].view(shape))


class _Call:
    """What all tiles share, and memory that is used again: fresh pages cost more than the work on them."""

    def __init__(self, inputs: AttentionInputs) -> None:
        self.q, self.k, self.v = _table(inputs.q), _table(inputs.k), _table(inputs.v)
        self.scale, self.softcap = inputs.scale, inputs.softcap
        self.exact = torch.promote_types(inputs.q.dtype, torch.float32)
        self.memory: dict[str, Tensor] = {}
        self.views: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def room(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """Return memory with arbitrary contents, valid until the next call with this name."""
        if (name, shape) not in self.views:
            size = math.prod(shape)
            if name not in self.memory or self.memory[name].numel() < size:
                self.memory[name] = self.q.new_empty(size, dtype=dtype or self.exact)
            self.views[name, shape] = self.memory[name][:size].view(shape)
        return self.views[name, shape]

    def take(self, name: str, at: Tensor) -> Tensor:
        """Return the rows of q, k or v that start at elements `at` [G, n], exact: [G, n, D]."""
        table: Tensor = getattr(self, name)
        found = self.room(name, (at.numel(), table.shape[1]), table.dtype)
        torch.index_select(table, 0, at.flatten(), out=found)
        if found.dtype != self.exact:
            found = self.room(f"exact {name}", found.shape).copy_(found)
        return found.view(*at.shape, -1)


class _Tiles:
    """Tiles that read about as many keys."""

    def __init__(self, call: _Call, rows: Rows, kept: Kept) -> None:
        self.call, self.rows, self.kept = call, rows, kept
        self.caps = [  # of masks that all tiles share
            self._cap(slice(0, 1), part).clone() if same else None for part, same in kept.masked
        ]

    def attend(self, out: Tensor, lse: Tensor | None) -> None:
        """Write the rows that see something to `out` [*, D] and `lse` [*]."""
        rows, kept, none = self.rows, self.kept, len(out) - 1
        (count, height), n = rows.at.shape, kept.at_k.shape[1]
        width = min(n, WIDTH)
        step = max(1, SCORES * torch.get_num_threads() // (height * width))
        weigh = lse is not None or n > width or kept.classes is not None
        seeing = rows.target
        if not kept.sure:
            seeing = seeing.where(rows.limit >= kept.position.amin(1, keepdim=True), none)
        for g in (slice(i, i + step) for i in range(0, count, step)):
            q = self.call.take("q", rows.at[g])
            result, mass = self._part(q, g, slice(0, width), weigh)
            for w in (slice(i, min(i + width, n)) for i in range(width, n, width)):
                result, mass = merge(result, mass, *self._part(q, g, w, weigh))
            target = seeing[g] if kept.classes is None else seeing[g].where(mass > UNSEEN, none)
            out.index_copy_(0, target.flatten(), result.flatten(0, 1).to(out.dtype))
            if lse is not None:
                lse.index_copy_(0, target.flatten(), mass.flatten().float())

    def _part(self, q: Tensor, g: slice, w: slice, weigh: bool) -> tuple[Tensor, Tensor]:
        """Return output [g, R, D] of tiles g over keys w, and log-sum-exps [g, R] if they are to be weighed."""
        call, kept = self.call, self.kept
        k = call.take("k", kept.at_k[g, w])
        scores = call.room("scores", (*q.shape[:2], k.shape[1]))
        scores.baddbmm_(q, k.transpose(1, 2), beta=0, alpha=call.scale)
        if call.softcap is not None:
            scores.div_(call.softcap).tanh_().mul_(call.softcap)
        if kept.bias is not None:
            scores += kept.bias[g, None, w]
        self._mask(scores, g, w)
        weights = torch.softmax(scores, -1, out=call.room("weights", scores.shape))
        part = call.room("part" if w.start else "first part", q.shape)
        torch.bmm(weights, call.take("v", kept.at_v[g, w]), out=part)
        if not weigh:
            return part, part[..., 0]
        return part, scores.amax(-1) - weights.amax(-1).log()  # a score less the log of its weight, the best known one

    def _mask(self, scores: Tensor, g: slice, w: slice) -> None:
        """Push scores of keys that a row does not see below UNSEEN; -inf would make NaN of rows that see nothing."""
        for (part, _), cap in zip(self.kept.masked, self.caps, strict=True):
            inner, outer = _overlap(part, w)
            seen = scores[..., inner]
            cap = self._cap(g, outer) if cap is None else cap[..., outer.start - part.start : outer.stop - part.start]
            torch.minimum(seen, cap, out=seen)
        if self.kept.classes is not None:
            part, mine, theirs = self.kept.classes
            inner, outer = _overlap(part, w)
            other = mine[g, :, None] != theirs[g, None, outer.start - part.start : outer.stop - part.start]
            scores[..., inner].masked_fill_(other, 2 * UNSEEN)

    def _cap(self, g: slice, w: slice) -> Tensor:
        """Return [g, R, w]: above every score where a row of tiles g sees a key of w, else below UNSEEN."""
        limit, position = self.rows.limit[g], self.kept.position[g, w.start - self.kept.sure : w.stop - self.kept.sure]
        high, place = ((x.to(self.call.exact) + y) * UNIT for x, y in ((limit, 0.5), (position, 0)))
        return torch.sub(high[..., None], place[:, None], out=self.call.room("cap", (*limit.shape, position.shape[1])))


def _table(x: Tensor) -> Tensor:
    """Return [*, D] whose row i starts at element i of x [B, H, S, D].

    Rows of any strides are then read by one index, without a copy.
    """
    span = sum((size - 1) * stride for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True))
    return x.as_strided((span + 1, x.shape[-1]), (1, 1))


def _overlap(part: slice, window: slice) -> tuple[slice, slice]:
    """Return what two ranges share, counted from the window's start and from zero; it may be empty."""
    start = max(part.start, window.start)
    stop = max(start, min(part.stop, window.stop))
    return slice(start - window.start, stop - window.start), slice(start, stop)
