"""Queries and keys with attention of known shape: noise, and structure that raises chosen logits by `gain`.

Everything is [1, H, S, D] with one seed per call and other structure per head, so that a hundred heads are a hundred
draws. Structures take dimensions of their own, from `dim` on, and add up.
"""

from __future__ import annotations

import math

import torch

WAVES = 16  # frequencies of a diagonal, two dimensions each


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


def h_grid(q, stride, phase):
    """Rows phase[h] + n * stride[h] look everywhere alike."""
    i = torch.arange(q.shape[-2])
    flat = i % torch.as_tensor(stride)[:, None] == torch.as_tensor(phase)[:, None]
    q.mul_(torch.where(flat, 0.1, 1.0)[..., None])


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
