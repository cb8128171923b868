"""Look at what the last query rows attend to: their softmax, and its mass per key and per distance."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .prefill import SINKS, Prefill
from .view import View

ENTRIES = 2**25  # fp32 logits at a time


def probe_rows(prefill: Prefill, count: int = 64, rows: Tensor | None = None, sink: bool = True) -> Tensor:
    """Return softmax rows fp32 [B, H, R, W], causal by position; rows of padding are 0.

    Args:
        count: how many of each sample's last real rows.
        rows: Long[B, R]: which rows instead, -1 for none.
        sink: False: softmax over all keys but the sink; rows that see nothing else are 0.
    """
    view = View(prefill)
    slots, limit = view.last(count)
    if rows is not None:
        slots = rows
        limit = torch.where(rows < 0, -1, view.limit.gather(1, rows.clamp_min(0)))
    parts = list(_weights(view, slots, limit, tail=rows is None, sink=sink))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def probe_lines(view: View, count: int) -> tuple[Tensor, Tensor]:
    """Return mass fp32 [B, H, N] of the last `count` rows per key slot and per distance (row's limit - key slot).

    The sink is left out, else it would be a line of its own at the distances of all these rows, and rows that give it
    more would count less.
    """
    slots, limit = view.last(count)
    verticals, slashes = [], []
    for weights in _weights(view, slots, limit, tail=True, sink=False):
        verticals.append(weights.sum(-2))
        slashes.append(offset_mass(weights, limit, view.consecutive))
    return torch.cat(verticals, 1), torch.cat(slashes, 1)


def offset_mass(weights: Tensor, position: Tensor, consecutive: bool = True) -> Tensor:
    """Return mass fp32 [B, H, N] by distance position - key of the rows in weights [B, H, R, N].

    Args:
        position: Long[B, R] of the rows; rows of -1 must have no weight.
        consecutive: the rows follow each other and end at the last one given, which is faster.
    """
    b, heads, r, n = weights.shape
    if not consecutive:
        key = position[:, :, None] - torch.arange(n, device=weights.device)
        shifted = weights.gather(-1, key.clamp_min(0)[:, None].expand(weights.shape))
        return shifted.masked_fill_((key < 0)[:, None], 0).sum(-2)
    skewed = weights.new_zeros(b, heads, r, n + r)  # each row one further left than the row above
    skewed.as_strided((b, heads, r, n), (heads * r * (n + r), r * (n + r), n + r - 1, 1), r - 1).copy_(weights)
    key = position[:, -1:] - torch.arange(n, device=weights.device)
    mass = skewed.sum(-2).gather(-1, key.clamp_min(0)[:, None].expand(b, heads, n))
    return mass.masked_fill_((key < 0)[:, None], 0)


def _weights(view: View, slots: Tensor, limit: Tensor, tail: bool, sink: bool) -> Iterator[Tensor]:
    """Yield softmax fp32 [B, h, R, N] of the row slots Long[B, R] for a few heads at a time, which bounds the memory.

    tail: the rows are the last ones of the view. sink: it takes part.
    """
    prefill, n = view.prefill, view.width
    b, r = slots.shape
    group = prefill.q.shape[1] // prefill.k.shape[1] if prefill.all_heads else 1
    q = (view.q(slots).float() * prefill.scale).to(view.k.dtype)
    first = view.first if sink else view.sink_end
    whole = tail and view.unpadded and n - r >= SINKS  # no row is blind
    seen_by_all = n - r if whole else 0  # only the columns after it, and the sink, need a mask
    key = torch.arange(seen_by_all, n, device=q.device)
    hidden = (key > limit[:, None, :, None]) | (key < first[:, None, None, None])
    blind = (limit < first[:, None])[:, None, :, None]
    step = max(1, ENTRIES // (b * group * r * n))
    for start in range(0, q.shape[1] // group, step):
        some = slice(start, start + step)
        k = view.k[:, some] if prefill.all_heads else view.k[:, prefill.key_heads[some]]
        rows = q[:, start * group : (start + step) * group].reshape(b, k.shape[1], group * r, -1)
        logits = (rows @ k.transpose(-1, -2)).float().view(b, -1, r, n)
        logits[..., seen_by_all:].masked_fill_(hidden, torch.finfo(torch.float32).min)
        if whole and not sink:
            logits[..., :SINKS] = torch.finfo(torch.float32).min
        weights = logits.softmax(-1)
        yield weights if whole else weights.masked_fill_(blind, 0)
