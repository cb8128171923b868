"""Whole grids of random tokens with an encoder's signals, to choose from by their embeddings."""

from __future__ import annotations

import math

import torch

from vlmopt.pruning import (
    Projector,
    ProjectorCall,
    Signal,
    TextEmbeds,
    VisionAttention,
    VisionKeys,
    VisualEmbeds,
    VisualTokens,
)


def visual(grids, signals=None, seed=0) -> VisualTokens:
    """Whole grids of random tokens (d = 8, two patches of 3 values each), some signals given."""
    generator = torch.Generator().manual_seed(seed)
    coords = torch.cat([torch.cartesian_prod(*map(torch.arange, grid)).reshape(-1, 3) for grid in grids])
    lengths = tuple(math.prod(grid) for grid in grids)
    n, weight = len(coords), torch.randn(6, 8, generator=generator)
    inputs = torch.randn(n, 2, 3, generator=generator)

    def project(x):
        return torch.tanh(x.flatten(1) @ weight)

    every: dict[Signal, object] = {
        VisualEmbeds(): project(inputs),
        TextEmbeds(): torch.randn(4, 8, generator=generator),
        Projector(): ProjectorCall(inputs, project, None),
    }
    for layer in (-2, 0):
        every[VisionAttention(layer)] = torch.rand(n, generator=generator)
        every[VisionAttention(layer, "all")] = torch.rand(n, generator=generator)
        every[VisionKeys(layer)] = torch.randn(n, 5, generator=generator)
    item = torch.repeat_interleave(torch.arange(len(grids)), torch.tensor(lengths))
    signals = every | (signals or {})
    return VisualTokens(n, torch.arange(n), item, coords, tuple(grids), signals, 0, lengths)


def embedded(rows, grid=None, signals=None) -> VisualTokens:
    return visual([grid or (1, 1, len(rows))], {VisualEmbeds(): rows} | (signals or {}))


def keep_of(method, tokens):
    return method.select(tokens).keep.tolist()
