"""Cover slashes with runs: fewest runs that hold a set of distances, the same for every tile of consecutive rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def cover(wanted: Tensor, run: int) -> Tensor:
    """Return starts Long[..., ceil(L / run)] of the fewest disjoint runs that cover what Bool[..., L] wants; then L.

    Greedy from the left: a run starts at the first wanted place beyond the run before. The chain is followed by
    doubling: from the first n starts and the jump over n runs come the first 2n.
    """
    length = wanted.shape[-1]
    place = torch.arange(length, device=wanted.device)
    following = torch.where(wanted, place, length).flip(-1).cummin(-1).values.flip(-1)
    jump = pad(following[..., run:], (0, min(run, length) + 1), value=length)  # from the start of a run to the next's
    starts, most = following[..., :1], -(-length // run)
    while starts.shape[-1] < most:
        starts = torch.cat([starts, jump.gather(-1, starts)], -1)
        jump = jump.gather(-1, jump)
    return starts[..., :most]


def slash_places(slashes: Tensor, tile: int) -> Tensor:
    """Return Bool[B, H, N + tile]: the keys that a tile of consecutive rows needs.

    Place N is the key of the tile's first row.

    Args:
        slashes: Bool[B, H, N] by distance.
    """
    count = pad(slashes.flip(-1).int(), (1, tile - 1)).cumsum(-1)  # places 0 .. N + tile - 1; distance N has none
    return count > pad(count, (tile, 0))[..., : count.shape[-1]]


def slash_blocks(slashes: Tensor, low: Tensor, high: Tensor, run: int) -> Tensor:
    """Return Bool[B, H, T, ceil(N / run)]: blocks with a key at a wanted distance from a limit in low..high.

    Limits are Long[B, T]. For tiles whose rows lie further apart than the tile is long: the gaps between them count as
    rows.
    """
    b, h, n = slashes.shape
    before = pad(slashes.int().cumsum(-1), (1, 0))  # [B, H, N + 1]: wanted distances below each
    start = torch.arange(0, n, run, device=slashes.device)
    near = (low[..., None] - start - run + 1).clamp(0, n)
    far = (high[..., None] - start + 1).clamp(0, n)

    def at(x: Tensor) -> Tensor:
        return before.gather(-1, x.flatten(1)[:, None].expand(b, h, -1)).view(b, h, *x.shape[1:])

    return at(torch.maximum(far, near)) > at(near)
