"""Measure how unlike the rest frames and tokens are: the parts of VidCom2 (arXiv 2505.14454)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)  # of the Gaussian kernels
TEMPERATURE = 0.01


def calm(embeds: Tensor) -> Tensor:
    """Return unit rows fp32 [n, d // 2]: the half of the channels of `embeds` [n, d] that varies least over tokens."""
    rows = embeds.float()
    half = max(rows.shape[1] // 2, 1)
    return normalize(rows[:, rows.var(0, correction=0).sort(stable=True).indices[:half]], dim=1)


def typical(rows: Tensor, centre: Tensor) -> Tensor:
    """Return fp32 [n]: how near each row [n, d] is to `centre` [d]: a sum of Gaussians, at most 5."""
    squared = (rows - centre).square().sum(1)
    return torch.stack([(squared / (-2 * width)).exp() for width in WIDTHS]).sum(0)


def weights(typicality: Tensor, split: Sequence[Tensor]) -> list[float]:
    """Return T factors > 0 of mean 1: 1 + p_t - 1 / T, p the softmax of how untypical part t of `split` is."""
    unlike = -torch.stack([typicality[index].mean() for index in split])
    return [1 + p - 1 / len(split) for p in (unlike / TEMPERATURE).softmax(0).tolist()]
