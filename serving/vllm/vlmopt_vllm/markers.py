"""PosPad where the number of rows has to be known before they are chosen.

Every maximal run of dropped rows leaves one marker at its last place (FocusUI, arXiv 2601.03928). A choice that the
front end makes needs as many placeholders as it has rows and runs. One that the worker makes is given `slots` of them,
markers included, and fitted to exactly that number.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlmopt.pruning import run_ends, run_mean


def with_ends(keep: Tensor, total: int) -> Tensor:
    """Give Long[k + runs], ascending: kept rows and the last row of every run of the others."""
    stays = mask(keep, total)
    return (stays | ends(~stays)).nonzero()[:, 0]


def slots(total: int, count: int) -> int:
    """Count placeholders for `count` of `total` rows not chosen yet, with the runs that a random choice would leave."""
    return min(count + round((total - count) * (count + 1) / total), total)


def fitted(keep: Tensor, scores: Tensor | None, total: int, room: int) -> Tensor:
    """Take rows, best first, so that they and their runs fill exactly `room` <= total places: Long, ascending.

    Taking a row makes k + runs larger by 2 inside a run, by 1 at its edge, by 0 where the run is this row alone. The
    longest beginning of the ranking that fits is taken; where one place is left, a row at an edge fills it.

    Args:
        keep: Long[k], ascending. scores: fp32 [n] or None; without, rows of `keep` are taken evenly spread.
    """
    rank = ranking(keep, scores, total)
    turn = pad(torch.empty_like(rank).scatter_(0, rank, torch.arange(total, device=rank.device)), (1, 1), value=-1)
    before, own, behind = turn[:-2], turn[1:-1], turn[2:]
    grows = 2 - (before < own).long() - (behind < own).long()
    size = 1 + grows[rank].cumsum(0)  # behind each turn; one run at first
    taken = rank[: int((size <= room).sum())]  # sizes never fall
    stays = mask(taken, total)
    if (int(size[len(taken) - 1]) if len(taken) else 1) < room:
        beside = pad(stays, (1, 1), value=True)
        edge = ~stays & (beside[:-2] ^ beside[2:])
        stays[edge.nonzero()[0, 0]] = True
    return stays.nonzero()[:, 0]


def ranking(keep: Tensor, scores: Tensor | None, total: int) -> Tensor:
    """Rank all rows, Long[n]: kept ones by score, or evenly spread without; then the others, nearest first."""
    place = torch.arange(total, device=keep.device)
    if scores is None:
        spread = torch.arange(len(keep), device=keep.device).double().mul_(0.6180339887498949).frac_().argsort()
        first = keep[spread]
    else:
        first = keep[scores[keep].nan_to_num(nan=-torch.inf).sort(descending=True, stable=True).indices]
    others = place[~mask(keep, total)]
    right = torch.searchsorted(keep, others).clamp_max(len(keep) - 1)
    away = torch.minimum((keep[right] - others).abs(), (others - keep[(right - 1).clamp_min(0)]).abs())
    return torch.cat([first, others[away.sort(stable=True).indices]])


def marked(rows: Tensor, keep: Tensor, marker: str | Tensor, width: int) -> Tensor:
    """Give [k + runs, d]: kept rows of [n, d] and one marker per run, in the order of places.

    Columns from `width` on are what DeepStack adds later; to a marker, which is no patch, it adds nothing.

    Args:
        marker: "mean" or "last" of the run, or a trained one [width].
    """
    dropped = ~mask(keep, len(rows))
    last = ends(dropped)
    out = rows.clone()
    if isinstance(marker, Tensor):
        out[last, :width] = marker.to(out)
    elif marker == "mean":
        out[last] = run_mean(rows[None], dropped[None], torch.zeros_like(dropped, dtype=torch.long)[None])[0, last]
    out[last, width:] = 0
    return out[with_ends(keep, len(rows))]


def ends(dropped: Tensor) -> Tensor:
    """Find the last row of every run, Bool[n]."""
    return run_ends(dropped[None], torch.zeros_like(dropped, dtype=torch.long)[None])[0]


def mask(index: Tensor, total: int) -> Tensor:
    return torch.zeros(total, dtype=torch.bool, device=index.device).index_fill_(0, index, True)
