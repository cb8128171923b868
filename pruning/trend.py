"""The part of an attention score that depends on position alone: how it is fitted, and where it is known.

Attention Debiasing for Token Pruning in Vision Language Models (arXiv 2508.17807): a_i = b_i * content_i with
b(x) = mu * exp(sigma * x), x in 0..1 the place of a token in its image. sigma > 0 favours late tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .tokens import VisualTokens

LIMITS = (-0.5, 3.0)  # slopes outside are not a positional trend, and dividing by one would blow up an end of the image
BINS = 16
ROUNDS = 3  # of alternating fits; one is enough on a full grid


def fit_exponential(mean_scores: Tensor) -> tuple[float, float]:
    """Return (mu, sigma) of mu * exp(sigma * i / L), fitted by least squares to the scores, not to their logarithm.

    Args:
        mean_scores: [L], scores >= 0 averaged over many samples, or how often each place was selected.

    Raises:
        ValueError: no vector, not finite, or fewer than two positive scores.
    """
    scores = mean_scores.detach().double().cpu()
    if scores.ndim != 1 or not bool(scores.isfinite().all()) or int((scores > 0).sum()) < 2:
        raise ValueError(
            f"mean_scores must be a vector of finite numbers, two of them > 0 at least, got {tuple(scores.shape)}"
        )
    scale = scores.clamp_min(0).mean()
    target = scores / scale
    x = torch.arange(len(scores), dtype=torch.float64) / len(scores)
    design = torch.stack([torch.ones_like(x), x], 1)
    some = target > 0
    best = torch.linalg.lstsq(design[some], target[some].log()[:, None]).solution[:, 0]  # log mu, sigma
    for _ in range(20):  # Gauss-Newton; a step that does not help is halved
        values = (design @ best).exp()
        step = torch.linalg.lstsq(values[:, None] * design, (target - values)[:, None]).solution[:, 0]
        trials = (best + step / 2**halving for halving in range(10))
        better = next((trial for trial in trials if misfit(trial, design, target) < misfit(best, design, target)), None)
        if better is None:
            break
        best = better
    return float(best[0].exp() * scale), float(best[1])


def misfit(parameters: Tensor, design: Tensor, target: Tensor) -> Tensor:
    """Return the sum of squared differences, 0-dim."""
    return (target - (design @ parameters).exp()).square().sum()


def fit_robust(scores: Tensor, x: Tensor) -> Tensor:
    """Return the slope sigma of log score over x by medians in bins and Theil-Sen; salient objects weigh little.

    Args:
        scores: fp32 [n]; those that are not positive are ignored. x: fp32 [n] in 0..1.

    Returns:
        0-dim tensor within `LIMITS`; 0 without two places to compare. Nothing is synchronised.
    """
    return slope(logarithm(scores), x).clamp(*LIMITS)


def fit_axes(scores: Tensor, coords: Tensor) -> Tensor:
    """Return the slopes along t, y and x at once; an axis without extent gets 0.

    Args:
        scores: fp32 [n]; those that are not positive are ignored. coords: fp32 [n, 3], each in 0..1.

    Returns:
        [3], each within `LIMITS`. Nothing is synchronised.
    """
    logs = logarithm(scores)
    sigma = torch.zeros(coords.shape[1], device=coords.device, dtype=torch.float32)
    for _ in range(ROUNDS):
        for axis in range(len(sigma)):
            rest = logs - coords @ sigma + coords[:, axis] * sigma[axis]
            sigma[axis] = slope(rest, coords[:, axis]).clamp(*LIMITS)
    return sigma


def logarithm(scores: Tensor) -> Tensor:
    """Return the logarithm, fp32 [n]; NaN where a score is not positive."""
    return torch.where(scores > 0, scores, float("nan")).float().log()


def slope(y: Tensor, x: Tensor) -> Tensor:
    """Return the Theil-Sen slope, 0-dim, of the medians of y and x in equal bins of x; NaNs in y are ignored."""
    bins = (x * BINS).long().clamp(0, BINS - 1)
    here = (bins == torch.arange(BINS, device=x.device)[:, None]) & ~y.isnan()
    middle_x, middle_y = (torch.where(here, v, float("nan")).nanquantile(0.5, dim=1) for v in (x, y))
    run = middle_x - middle_x[:, None]  # NaN for empty bins, not positive for pairs in the wrong order
    rises = torch.where(run > 0, (middle_y - middle_y[:, None]) / run, float("nan"))
    return rises.flatten().nanquantile(0.5).nan_to_num(0.0)


def rope_kernel(distance: Tensor, base: float, head_dim: int) -> Tensor:
    """Return the rotary product of two all-ones vectors, fp32: (2 / sqrt(d)) * sum_j cos(distance * theta_j).

    theta_j = base**(-2j / d). SparseVLM (arXiv 2410.04417), gravity correction. Not monotone, and negative far away.
    """
    powers = torch.arange(0, head_dim, 2, device=distance.device, dtype=torch.float32) / head_dim
    frequencies, scale = base**-powers, 2 / math.sqrt(head_dim)
    return (distance.float()[..., None] * frequencies).cos().sum(-1) * scale


def rope_trend(distance: Tensor, base: float, head_dim: int) -> Tensor:
    """Return `rope_kernel`, at least a tenth of its value at 0 (safe to divide by; base 1e4 is lower from 721 on)."""
    return rope_kernel(distance, base, head_dim).clamp_min(0.1 * head_dim**0.5)


def raster_place(tokens: VisualTokens) -> Tensor:
    """Return fp32 [n] in 0..1: each token's index in its span (image, tile, video) by the span's length."""
    lengths = torch.tensor(tokens.lengths or (tokens.total,), device=tokens.item.device)
    return tokens.place.float() / lengths[tokens.item if tokens.lengths else torch.zeros_like(tokens.item)]


def grid_place(tokens: VisualTokens) -> Tensor:
    """Return fp32 [n, 3] in 0..1: frame, row and column by the extents of the token's grid; 0 where unknown."""
    extents = torch.tensor([grid or (1, 1, 1) for grid in tokens.grids], device=tokens.item.device)
    return tokens.coords.clamp_min(0).float() / extents[tokens.item]


def frame_place(tokens: VisualTokens) -> Tensor:
    """Return fp32 [n] in 0..1: the raster place inside the token's frame; in its span where the grid is unknown."""
    rows = torch.tensor([grid[1] if grid else 1 for grid in tokens.grids], device=tokens.item.device)
    _, y, x = grid_place(tokens).T
    return torch.where((tokens.coords >= 0).all(1), y + x / rows[tokens.item], raster_place(tokens))
