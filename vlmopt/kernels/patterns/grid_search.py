"""Find the period with which the last rows' attention repeats, if any: stride and phase of grid heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .view import View

LEAST_STRIDE = 16
PERIODS = 8  # a stride must fit into the searched stretch so many times
EVENNESS = 0.4  # a line's mass is spread over more than this share of its members
PROPOSALS = 3  # strides per head and kind of line that are looked at closely


@dataclass(frozen=True, eq=False)
class Grids:
    """One grid per sample and head; all [B, H]."""

    stride: Tensor  # Long
    phase: Tensor  # Long: of the columns, as key slot modulo stride
    delta: Tensor  # Long: of the diagonals, as distance modulo stride
    columns: Tensor  # Bool: there are columns that repeat with the stride
    diagonals: Tensor  # Bool: there are diagonals that do
    strength: Tensor  # fp32 [2, B, H]: mass on the best columns and diagonals, relative to an even spread
    whole: Tensor | None = None  # Bool: rows whose limit is `phase` modulo stride keep every key

    def on(self, heads: Tensor) -> Grids:
        """Return the grids of some of the heads, Long[H']."""
        names = ("stride", "phase", "delta", "columns", "diagonals", "strength")
        return replace(self, **{name: getattr(self, name)[..., heads] for name in names})


def search(
    view: View,
    verticals: Tensor,
    slashes: Tensor,
    *,
    rows: int,
    known: Sequence[int] = (),
    propose: bool = True,
    largest: int = 1024,
    least: float = 4.0,
    columns: bool = True,
    diagonals: bool = True,
) -> Grids:
    """Return the stride whose best line holds most mass beyond an even spread, its phases, and whether that is a grid.

    MMInference (arXiv 2504.16083), algorithm 1, leaves open how the scores are reduced. Here the score of a stride s is
    max_c m[c] / sum(m) - 1 / s with m[c] the mass of residue c; the sink and the local window are left out. A divisor
    of the true stride pays with its larger 1 / s, a multiple holds part of the mass only. A line counts if it has
    `least` times the mass of an even spread and does not owe it to a few of its members: those are verticals.

    Args:
        verticals, slashes: mass fp32 [B, H, N] per key slot and per distance, of the last `rows` rows.
        known: strides to try in any case, such as the tokens per frame.
        propose: try strides from the data, any whole number from 16 to `largest`.
        columns, diagonals: kinds of lines to look for.
    """
    n = view.width
    at = torch.arange(n, device=verticals.device)
    last = view.limit.amax(-1)[:, None]  # [B, 1], as all below
    extent = last - view.first[:, None] + 1
    near = (extent // 4).clamp_max(max(1024, *known, 0))
    kept = (
        (at >= view.first[:, None] + 64) & (at <= last - near),
        (at >= near) & (at < extent - 64 - rows),  # the sink lies at the largest distances
    )
    masses = [m * k[:, None] for m, k in zip((verticals, slashes), kept, strict=True)]
    longest = torch.stack([k.sum(-1) for k in kept]).amin(0)[:, None, None] // PERIODS  # [B, 1, 1]
    kinds = [m for m, wanted in zip(masses, (columns, diagonals), strict=True) if wanted]
    tried = [torch.tensor(known, device=at.device).clamp_min(1).expand(*masses[0].shape[:2], -1)] if known else []
    limit = min(largest, max(n // PERIODS, LEAST_STRIDE))
    if propose or not known:
        tried += [periods(m, limit, longest) for m in kinds]
    strides = torch.cat(tried, -1)  # [B, H, C]
    shares, phases = zip(*(fold(m, strides, min(max((limit, *known)), n)) for m in masses), strict=True)
    score = torch.stack([s for s, wanted in zip(shares, (columns, diagonals), strict=True) if wanted]).amax(0)
    score = (score - 1 / strides.float()).masked_fill(strides > longest, -torch.inf)
    best = score.argmax(-1, keepdim=True)
    stride = strides.gather(-1, best)
    line = [p.gather(-1, best)[..., 0] for p in phases]
    share = torch.stack([s.gather(-1, best)[..., 0] for s in shares])  # [2, B, H]
    stride = stride[..., 0]
    even = torch.stack([evenness(m, k, stride, c) for m, k, c in zip(masses, kept, line, strict=True)])
    # `rows` neighbouring rows meet a column at as many distances, and a diagonal at as many keys: no lines of their own
    echo = (share < share.flip(0)) & (share < 2 / stride.clamp_max(rows).float())
    found = (stride * share >= least) & (even > EVENNESS) & ~echo & (stride <= longest[..., 0])
    return Grids(stride, line[0], line[1], found[0] & columns, found[1] & diagonals, stride * share)


def periods(mass: Tensor, largest: int, longest: Tensor) -> Tensor:
    """Return Long[B, H, PROPOSALS]: strides at whose multiples two masses [B, H, N] lie apart most often.

    Summed over the multiples of s, the autocorrelation is the energy of the mass folded by s. Without distance 0, where
    a single heavy member would agree with itself; 1 / s is the share of an even spread.
    """
    n = mass.shape[-1]
    size = 1 << (2 * n - 1).bit_length()
    spectrum = torch.fft.rfft(mass, size)
    together = torch.fft.irfft(spectrum.real.square() + spectrum.imag.square(), size)[..., :n]
    strides = torch.arange(LEAST_STRIDE, largest + 1, device=mass.device)
    counts = (n - 1) // strides
    which = torch.arange(len(strides), device=mass.device).repeat_interleave(counts)
    lag = (torch.arange(1, len(which) + 1, device=mass.device) - (counts.cumsum(0) - counts)[which]) * strides[which]
    energy = mass.new_zeros(*mass.shape[:2], len(strides)).index_add_(-1, which, together[..., lag])
    score = 2 * energy / mass.sum(-1, keepdim=True).square().clamp_min(1e-30) - 1 / strides.float()
    score = score.masked_fill(strides > longest, -torch.inf)
    return strides[score.topk(min(PROPOSALS, len(strides))).indices]


def fold(mass: Tensor, strides: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the largest share fp32 [B, H, C] of mass [B, H, N] in one residue class, and the class, per stride."""
    at = torch.arange(mass.shape[-1], device=mass.device)
    total = mass.sum(-1).clamp_min(1e-30)
    shares, phases = [], []
    for stride in strides.unbind(-1):  # a handful
        sums = mass.new_zeros(*mass.shape[:2], classes).scatter_add_(-1, at % stride[..., None], mass)
        top = sums.max(-1)
        shares.append(top.values / total)
        phases.append(top.indices)
    return torch.stack(shares, -1), torch.stack(phases, -1)


def evenness(mass: Tensor, kept: Tensor, stride: Tensor, phase: Tensor) -> Tensor:
    """Return fp32 [B, H]: effective share (sum m)^2 / (n sum m^2) of a line's n members that carry its mass."""
    member = (torch.arange(mass.shape[-1], device=mass.device) % stride[..., None] == phase[..., None]) & kept[:, None]
    line = mass * member
    return line.sum(-1).square() / (member.sum(-1) * line.square().sum(-1)).clamp_min(1e-30)
