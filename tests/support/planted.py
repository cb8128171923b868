"""Queries and keys with attention of known shape: noise, and structure that raises chosen logits by `gain`.

Everything is [1, H, S, D] with one seed per call and other structure per head, so that a hundred heads are a hundred
draws. Structures take dimensions of their own, from `dim` on, and add up. `structured` makes a whole layer by the name
of what is planted, and `sinks` gives its first keys a share of every row, as real models do.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from vlmopt.kernels.patterns import Prefill

WAVES = 16  # frequencies of a diagonal, two dimensions each
FRAME = 196  # tokens of a frame
TEXT = 16  # tokens before the first frame
STRUCTURES = ("grid", "boundary", "blocks", "columns", "topics", "diagonals", "frames", "window", "mixed", "noise")


def noise(heads=1, length=4096, dim=64, seed=0, batch=1):
    """Null: q and k from N(0, I)."""
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, heads, length, dim, generator=g) for _ in range(2))


def columns(q, k, weight, gain=6.0, dim=0, rows=None):
    """Keys [H, S] of `weight` (True: 1) gain `gain` in every row (or in `rows`, Bool[S]): V-grids, verticals, sinks."""
    c = math.sqrt(gain * math.sqrt(q.shape[-1]))
    q[..., dim] = c if rows is None else c * rows
    k[..., dim] = c * weight


def waves(q, k, frequency, shift, gain=12.0, dim=1, at=None, keys=None, rows=None):
    """Distances near `shift` [H] gain up to `gain`: a sum of cosines of frequency [H, WAVES] in (i - j - shift).

    at, keys: coordinates [S] of rows and keys, by default their index; rows: Bool[S], the only ones that take part.
    """
    place = torch.arange(q.shape[-2]).double() if at is None else at.double()
    other = place if keys is None else keys.double()
    size = math.sqrt(gain * math.sqrt(q.shape[-1]) / WAVES)
    for x, t in ((q, place - torch.as_tensor(shift).double()[:, None]), (k, other.expand(q.shape[1], -1))):
        angle = t[..., None] * frequency[:, None].double()
        part = size * torch.cat([angle.cos(), angle.sin()], -1).to(x.dtype)
        x[..., dim : dim + 2 * WAVES] = part
    if rows is not None:
        q[..., ~rows, dim : dim + 2 * WAVES] = 0


def v_grid(q, k, stride, phase, gain=6.0, dim=0):
    """Columns phase[h] + n * stride[h]."""
    j = torch.arange(k.shape[-2])
    columns(q, k, j % torch.as_tensor(stride)[:, None] == torch.as_tensor(phase)[:, None], gain, dim)


def s_grid(q, k, stride, delta, gain=12.0, dim=1, **where):
    """Diagonals at distances delta[h] + n * stride[h]."""
    harmonics = torch.arange(1, WAVES + 1)
    waves(q, k, 2 * math.pi * harmonics / torch.as_tensor(stride)[:, None], delta, gain, dim, **where)


def slash(q, k, distance, seed, gain=12.0, dim=1, **where):
    """One diagonal per head."""
    g = torch.Generator().manual_seed(seed)
    frequency = math.pi * torch.rand(q.shape[1], WAVES, generator=g)
    waves(q, k, frequency, distance, gain, dim, **where)


def local_window(q, k, width, seed, gain=12.0, dim=1):
    """A broad bump at distance 0, about width[h] wide."""
    g = torch.Generator().manual_seed(seed)
    frequency = torch.randn(q.shape[1], WAVES, generator=g) / torch.as_tensor(width)[:, None]
    waves(q, k, frequency, torch.zeros(q.shape[1]), gain, dim)


def topics(q, k, segments, seed, strength=3.0):
    """Blocks on the diagonal: a direction per segment [S], added to its queries and keys."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(int(segments.max()) + 1, q.shape[-1], generator=g)
    shared = strength * torch.nn.functional.normalize(directions, dim=-1)[segments]
    q += shared
    k += shared


def timestamped(frames, frame, seed, most=20):
    """Modality Long[S] of `frames` frames of `frame` vision tokens, each after a text of 1 to `most` tokens."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, most + 1, (frames,), generator=g).tolist()
    return torch.cat([torch.cat([torch.zeros(n), torch.ones(frame)]) for n in lengths]).long()


def structured(kind, heads=4, length=4096, dim=64, seed=0, gain=8.0, frame=FRAME):
    """A prefill with one structure, at other places in every head; the last dimension stays free for `sinks`.

    "frames": columns that repeat with the frames; "grid": diagonals too; "boundary": columns that repeat among vision
    tokens only, between texts of any length; "blocks": stretches that look at themselves; "topics": stretches that
    come back; "columns": single keys; "diagonals": one distance; "window": near keys; "mixed": topics, columns, frames
    and a diagonal at once.
    """
    assert kind in STRUCTURES, kind
    g = torch.Generator().manual_seed(seed)
    q, k = noise(heads, length, dim, seed)
    v = torch.randn(k.shape, generator=g)
    place, strength = torch.arange(length), math.sqrt(gain * math.sqrt(dim))
    phase = torch.randint(frame, (heads, 1), generator=g)
    distance = torch.randint(length // 16, length // 2, (heads,), generator=g)
    single = torch.randint(64, length // 2, (heads, 24), generator=g)
    weight = torch.zeros(heads, length).scatter_(1, single, 1.0)
    modality = (place >= TEXT).long()
    every = kind == "mixed"
    if kind == "blocks":
        topics(q, k, place // 300, seed, strength)
    if kind == "topics" or every:
        topics(
            q, k, torch.randint(16, (-(-length // 128),), generator=g).repeat_interleave(128)[:length], seed, strength
        )
    if kind == "columns" or every:
        columns(q, k, weight, gain)
    if kind == "frames" or kind == "grid" or every:
        columns(q, k, ((place - phase) % frame == 0) | (weight.bool() & every), gain)
    if kind == "grid":
        s_grid(q, k, torch.full((heads,), frame), phase[:, 0], gain)
    if kind == "diagonals" or every:
        slash(q, k, distance, seed, gain)
    if kind == "window":
        local_window(q, k, torch.linspace(20, 200, heads), seed, gain)
    if kind == "boundary":
        modality = timestamped(-(-length // frame), frame, seed)[:length]
        vision = modality.bool()
        columns(q, k, vision & ((modality.cumsum(0) - phase) % frame == 0), gain, rows=vision)
    q[..., -1] = k[..., -1] = 0
    frames = None if kind == "boundary" else frame
    return Prefill(q, k, v, dim**-0.5, heads=torch.arange(heads), modality=modality[None], frame=frames)


def sinks(prefill, share, count=1):
    """The prefill with `share` of every row on its first `count` real keys; what is left is spread as it was before.

    The keys have one large component of their own, in the last dimension, along which every query points.
    """
    q, k = prefill.q.clone(), prefill.k.clone()
    key = torch.arange(prefill.width)
    for b in range(prefill.batch):
        first = int(prefill.key_first[b])
        last = prefill.position[b, :, None]
        for h in range(q.shape[1]):
            logits = (q[b, h] @ k[b, h].T * prefill.scale).masked_fill((key > last) | (key < first), -torch.inf)
            own = logits[:, first : first + count].logsumexp(-1)
            rest = logits[:, first + count :].logsumexp(-1)
            needed = rest - own + math.log(share / (1 - share))
            q[b, h, :, -1] = needed.where(needed.isfinite(), 0) / (prefill.scale * 8)
        k[b, :, first : first + count, -1] = 8
    return replace(prefill, q=q, k=k)
