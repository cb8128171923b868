"""Measure what a plan of launches keeps and what it loses: recall, density and output error, per head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from .patterns.base import tile_span
from .patterns.blocks import products
from .patterns.prefill import Prefill
from .sparse_attention import run_plan
from .sparse_attention.index import Keys, Launch, tile_count

LOGITS = 2**26  # of dense rows at a time
CHANNELS = 64  # blocks counted at a time


@dataclass(frozen=True)
class Density:
    """What is kept as a share of the causal triangle, 0-1; fp32 [H] each, over all samples."""

    blocks: Tensor  # blocks with at least one kept cell
    cells: Tensor  # pairs of a row and a key that it reads; a pooled key is one key


def recall(prefill: Prefill, launches: Sequence[Launch], rows: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Return fp32 [B, H, R]: the share of the dense attention that `rows` Long[B, R] keep; NaN for padding.

    Default: all rows. exp(log-sum-exp of the kept logits - that of all of them): exact, whatever the plan is made of.
    Pooled keys (PSA) are not part of the dense attention; with them it is the ratio of the two normalisers, which may
    pass 1.
    """
    if rows is None:
        rows = torch.arange(prefill.rows, device=prefill.device).expand(prefill.batch, -1)
    kept = attend(prefill, launches, backend)[1]
    kept = kept.gather(2, rows[:, None].expand(-1, kept.shape[1], -1))
    share = (kept - dense_lse(prefill, rows)).exp()
    return share.masked_fill(~prefill.real.gather(1, rows)[:, None], torch.nan)


def recall_summary(values: Tensor) -> dict[str, Tensor]:
    """Summarise what `recall` returns over samples and rows: mean, p5 (5th percentile) and min, fp32 [H] each."""
    flat = values.transpose(0, 1).flatten(1)
    lowest = flat.masked_fill(flat.isnan(), torch.inf).amin(1)
    return {"mean": flat.nanmean(1), "p5": flat.nanquantile(0.05, dim=1), "min": lowest}


def sample_rows(prefill: Prefill, random: int = 512, last: int = 64, seed: int = 0) -> Tensor:
    """Return Long[B, R]: the last rows of every sample and `random` others (with replacement); all if they are few."""
    if prefill.rows <= random + last:
        return torch.arange(prefill.rows, device=prefill.device).expand(prefill.batch, -1)
    first = (prefill.key_first - prefill.offset).clamp_min(0)[:, None]
    drawn = torch.rand(prefill.batch, random, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(
        prefill.device
    )
    rows = first + (drawn * (prefill.row_end[:, None] - first)).long()
    tail = prefill.row_end[:, None] - 1 - torch.arange(last, device=prefill.device)
    return torch.cat([rows, torch.maximum(tail, first)], 1)


def density(
    prefill: Prefill, launches: Sequence[Launch], tile: int = 64, run: int = 64, backend: str = "auto"
) -> Density:
    """Return the shares of the causal triangle, not of the square, in blocks (of tile x run cells) and in cells."""
    kept, every = kept_cells(prefill, launches, tile, run, backend), causal_cells(prefill, tile, run)
    over = (0, 2, 3)
    return Density(
        blocks=(kept > 0).sum(over).float() / (every > 0).sum(over),
        cells=kept.double().sum(over).div(every.sum(over)).float(),
    )


def causal_cells(prefill: Prefill, tile: int, run: int) -> Tensor:
    """Return Long[B, 1, T, N]: the number of pairs of a row and a key that it sees, in each block."""
    low, high = (edge[:, None, :, None] for edge in tile_span(prefill, tile))
    start = torch.arange(tile_count(prefill.width, run), device=low.device) * run
    begin = torch.maximum(start, prefill.key_first[:, None, None, None])
    length = (torch.minimum(start + run, prefill.key_end[:, None, None, None]) - begin).clamp_min(0)

    def up_to(position: Tensor) -> Tensor:
        """Count the cells of all rows up to `position`: a triangle, then whole rows."""
        rows = (position + 1 - begin).clamp_min(0)
        corner = torch.minimum(rows, length)
        return corner * (corner + 1) // 2 + (rows - corner) * length

    return (up_to(high) - up_to(low - 1)) * (high >= low)


def kept_cells(
    prefill: Prefill,
    launches: Sequence[Launch],
    tile: int = 64,
    run: int = 64,
    backend: str = "auto",
    rows: Tensor | None = None,
    keys: Tensor | None = None,
) -> Tensor:
    """Return fp32 [B, H, T, N]: how many pairs of a row and a key the plan reads in each block of the map.

    To a query of zeros all keys weigh the same: e^LSE is their number, and values that say which block a key lies in
    add up to the share of every block. Orders, merges and pooled keys are counted as they are run.

    Args:
        rows, keys: Long[slots] and Long[W], slot -> row or key: the order of the map, default natural.
    """
    heads, count = prefill.k.shape[1], tile_count(prefill.width, run)
    q = prefill.q.new_zeros(*prefill.q.shape[:3], CHANNELS, dtype=torch.float32)
    natural = torch.arange(prefill.width, device=q.device)
    block = (natural if keys is None else keys.argsort()) // run
    block = pad(block, (0, run * count + prefill.rows), value=count)  # positions beyond the keys, of pooled padding
    parts = []
    for first in range(0, count, CHANNELS):
        own = torch.arange(first, first + CHANNELS, device=q.device)

        def marks(position: Tensor, own: Tensor = own) -> Tensor:
            return (block[position][..., None] == own).float().expand(prefill.batch, heads, -1, -1)

        plan = list(launches)
        for i, launch in enumerate(launches):
            if launch.k is not None:
                position = None if launch.keys is None else launch.keys.key_position
                v = marks(natural if position is None else position)
                plan[i] = replace(launch, k=torch.zeros_like(v), v=v, keys=Keys(position))
        v = marks(natural)
        out, lse = attend(replace(prefill, q=q, k=torch.zeros_like(v), v=v), plan, backend)
        cells = out * lse.exp()[..., None]
        cells = cells if rows is None else cells[:, :, rows]
        parts.append(pad(cells, (0, 0, 0, -cells.shape[2] % tile)).unflatten(2, (-1, tile)).sum(3))
    return torch.cat(parts, 3)[..., :count].round()


def output_error(out: Tensor, exact: Tensor) -> Tensor:
    """Return fp32 [...]: |out - exact| / |exact| in the Euclidean norm over the last two axes (rows and channels)."""
    difference: Tensor = torch.linalg.vector_norm(out.float() - exact.float(), dim=(-2, -1))
    size: Tensor = torch.linalg.vector_norm(exact.float(), dim=(-2, -1))
    return difference / size


def dense_lse(prefill: Prefill, rows: Tensor) -> Tensor:
    """Return fp32 [B, H, R]: the log-sum-exp of all visible logits of the real ones among `rows` Long[B, R]."""
    key = torch.arange(prefill.width, device=prefill.device)
    parts = []
    for some in rows.split(max(1, LOGITS // (prefill.batch * len(prefill.heads) * prefill.width)), 1):
        queries = prefill.q.take_along_dim(some[:, None, :, None], 2)[:, prefill.heads]
        seen = (key <= prefill.position.gather(1, some)[..., None]) & (key >= prefill.key_first[:, None, None])
        logits = products(prefill, queries.float(), prefill.k.float()) * prefill.scale
        if prefill.softcap is not None:
            logits = prefill.softcap * torch.tanh(logits / prefill.softcap)
        parts.append(logits.masked_fill_(~seen[:, None], -torch.inf).logsumexp(-1))
    return torch.cat(parts, 2)


def attend(prefill: Prefill, launches: Sequence[Launch], backend: str) -> tuple[Tensor, Tensor]:
    """Return the output [B, H, Sq, D] and LSE [B, H, Sq] of a plan for `prefill.heads`."""
    out, lse = run_plan(prefill, launches, return_lse=True, backend=backend)
    return out[:, prefill.heads], lse[:, prefill.heads]
