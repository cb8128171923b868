"""How many tokens stay, how images share a budget, and where evenly spread picks lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .signals import VisualEmbeds
from .tokens import VisualTokens
from .uniqueness import calm, typical, weights

ALLOCATIONS = ("proportional", "equal", "global", "temporal_change", "distinctiveness", "first_whole")


def kept_tokens(total: int, keep_ratio: float | None, keep_tokens: int | None) -> int:
    """Return the budget for `total` >= 1 tokens: floor(ratio * total + 1/2) in 1..total, or min(keep_tokens, total)."""
    if keep_tokens is not None:
        return min(keep_tokens, total)
    if keep_ratio is None:
        raise ValueError("give keep_ratio or keep_tokens")
    return min(max(math.floor(keep_ratio * total + 0.5), 1), total)


def share(counts: Sequence[int], budget: int) -> list[int]:
    """Split `budget` in proportion to `counts`, at least 1 for each non-empty part while it lasts."""
    return apportion(counts, budget, counts, 1)


def apportion(
    weights: Sequence[float], budget: int, caps: Sequence[int], least: int, held: Sequence[int] | None = None
) -> list[int]:
    """Split `budget` into whole parts in proportion to `weights` >= 0: largest remainders, ties to the earlier part.

    Sums to min(budget, sum(caps)); part i lies within max(min(least, caps[i]), held[i])..caps[i]. Where the budget does
    not cover every minimum, each part gets what it holds, then heavier parts get their minimum first.
    """
    budget = min(budget, sum(caps))
    held = held or [0] * len(caps)
    floors = [max(min(least, cap), own) for cap, own in zip(caps, held, strict=True)]
    if sum(floors) >= budget:
        parts = list(held)
        for i in sorted(range(len(caps)), key=lambda i: (-weights[i], i)):
            parts[i] = min(floors[i], parts[i] + budget - sum(parts))
        return parts
    fixed: dict[int, int] = {i: 0 for i, cap in enumerate(caps) if not cap}
    while True:  # parts that would leave their bounds are pinned to them, and the others share what is left
        free = [i for i in range(len(caps)) if i not in fixed]
        left, mass = budget - sum(fixed.values()), sum(weights[i] for i in free)
        ideal = {i: left * weights[i] / mass if mass else left / len(free) for i in free}
        over = {i: caps[i] for i in free if ideal[i] > caps[i]}
        under = {i: floors[i] for i in free if ideal[i] < floors[i]}
        if not over and not under:
            break
        excess = sum(ideal[i] - caps[i] for i in over) - sum(floors[i] - ideal[i] for i in under)
        fixed |= over if excess >= 0 and over else under
    whole = fixed | {i: math.floor(ideal[i] + 1e-9) for i in free}
    remainders = sorted((i for i in free if whole[i] < caps[i]), key=lambda i: (round(whole[i] - ideal[i], 9), i))
    for i in remainders[: budget - sum(whole.values())]:
        whole[i] += 1
    return [whole[i] for i in range(len(caps))]


def segments(tokens: VisualTokens, kind: str, allocation: str) -> list[Tensor]:
    """Return places Long[m] of the tokens of each image (or tile, video) or of each frame; one pool for "global"."""
    if allocation == "global" or (kind == "image" and len(tokens.grids) == 1):
        return [torch.arange(len(tokens), device=tokens.item.device)]
    of = tokens.item if kind == "image" else tokens.frame
    sizes = of.unique(return_counts=True)[1].tolist()
    return list(of.sort(stable=True).indices.split(sizes))


def allocate(
    tokens: VisualTokens,
    split: Sequence[Tensor],
    k: int,
    allocation: str,
    least: int,
    held: Sequence[int] | None = None,
) -> list[int]:
    """Return the parts of k tokens that the segments `split` get.

    Never by attention, whose recency would favour the last segment. held: tokens that each segment has to get, at most
    k of them.
    """
    sizes = [len(index) for index in split]
    if len(split) == 1:
        return [min(k, sizes[0])]
    if allocation == "first_whole":
        held = held or [0] * len(split)
        first = min(k - sum(held[1:]), sizes[0])
        return [first, *apportion(sizes[1:], k - first, sizes[1:], least, held[1:])]
    if allocation == "temporal_change":
        change = temporal_change(tokens)
        parts: Sequence[float] = [float(x) for x in torch.stack([change[index].sum() for index in split]).tolist()]
    elif allocation == "distinctiveness":
        parts = distinctiveness(tokens, split)
    else:
        parts = [1.0] * len(split) if allocation == "equal" else sizes
    return apportion(parts, k, sizes, least, held)


def temporal_change(tokens: VisualTokens, reference: Sequence[int] = (1,)) -> Tensor:
    """Return fp32 [n]: 1 - cosine to the same cell of an earlier frame; 2, the largest value, where there is none.

    reference: how many frames before, by t modulo its length; 0: nowhere.
    """
    embeds = normalize(tokens.signals[VisualEmbeds()].float(), dim=1)
    t, y, x = tokens.coords.T
    rows, columns = y.max() + 1, x.max() + 1
    frames = t.max() + 1
    inside = (tokens.coords >= 0).all(1)
    key = torch.where(inside, ((tokens.item * frames + t) * rows + y) * columns + x, -2)  # -2: nobody's predecessor
    back = torch.tensor(reference, device=t.device)[t % len(reference)]
    before = torch.where((back > 0) & (t >= back), key - back * rows * columns, -1)
    order = key.argsort(stable=True)
    found = torch.searchsorted(key[order], before).clamp_max(len(key) - 1)
    previous = order[found]
    known = (key[previous] == before) & inside
    return torch.where(known, 1 - (embeds * embeds[previous]).sum(1), 2.0)


def distinctiveness(tokens: VisualTokens, split: Sequence[Tensor]) -> list[float]:
    """Return each segment's size times 1 + p - 1 / T, p the softmax over T segments of how untypical its tokens are.

    Video Compression Commander (VidCom2, arXiv 2505.14454), frame uniqueness: at most one segment of equal ones gets
    twice its part, and none is starved.
    """
    rows = calm(tokens.signals[VisualEmbeds()])
    factors = weights(typical(rows, rows.mean(0)), split)
    return [factor * len(index) for factor, index in zip(factors, split, strict=True)]


def strided(n: int, k: int) -> list[int]:
    """Return k of n positions, evenly spread: the nearest to the centre of each of k equal parts, the lower on ties."""
    return [((2 * i + 1) * n - 1) // (2 * k) for i in range(k)]
