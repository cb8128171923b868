"""Tokens of whole grids with random signals of every kind."""

from __future__ import annotations

import dataclasses
import math

import torch

from vlmopt.pruning import (
    Activations,
    AttentionRows,
    FirstPassRows,
    HiddenStates,
    LookAheadRows,
    Novelty,
    Pixels,
    PixelScale,
    Projector,
    ProjectorCall,
    Scorer,
    Sinks,
    TextEmbeds,
    TwoLayers,
    VisionAttention,
    VisionKeys,
    VisualEmbeds,
    VisualTokens,
    Weights,
)

GRIDS = {
    "one": [(1, 8, 8)],
    "wide": [(1, 3, 17)],
    "row": [(1, 1, 9)],
    "single": [(1, 1, 1)],
    "two": [(1, 6, 9), (1, 2, 3)],
    "many": [(1, 1, 1), (1, 5, 4), (1, 1, 2), (1, 7, 7)],
    "video": [(5, 4, 6)],
    "video_and_image": [(3, 4, 4), (1, 9, 5)],
}


def cells(grid):
    return torch.cartesian_prod(*(torch.arange(size) for size in grid)).reshape(-1, 3)


def visual(grids, needs=(), seed=0, generator=None, keep=None) -> VisualTokens:
    """Tokens of whole grids, or the subset `keep` of them, with random signals."""
    coords = torch.cat([cells(grid) for grid in grids])
    lengths = [math.prod(grid) for grid in grids]
    item = torch.repeat_interleave(torch.arange(len(grids)), torch.tensor(lengths))
    index = torch.arange(len(coords)) if keep is None else keep
    signals = random_signals(needs, len(index), generator)
    return VisualTokens(len(coords), index, item[index], coords[index], tuple(grids), signals, seed, tuple(lengths))


def random_signals(needs, n, generator=None):
    """Values of every kind for n tokens and a question of 5."""

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    def projector():
        layers = torch.nn.Linear(16, 24), torch.nn.GELU(), torch.nn.Linear(24, 12)
        module = torch.nn.Sequential(torch.nn.Flatten(), *layers)
        return ProjectorCall(rand(n, 2, 8), lambda x: module(x), TwoLayers(None, True, *layers))

    def rows(need):
        return rand(4, 5 if need.rows == "text" else need.rows, n)

    make = {
        AttentionRows: rows,
        LookAheadRows: rows,
        FirstPassRows: rows,
        VisualEmbeds: lambda need: rand(n, 12) - 0.5,
        TextEmbeds: lambda need: rand(5, 12) - 0.5,
        HiddenStates: lambda need: rand(n, 12) - 0.5,
        Sinks: lambda need: rand(n) > 0.7,
        Activations: lambda need: rand(n if need.of == "visual" else 5, 32) - 0.5,
        Novelty: lambda need: rand(n),
        Pixels: lambda need: rand(n, 3, 16),
        PixelScale: lambda need: torch.full((3,), 0.26),
        Weights: lambda need: scorer(12),
        Projector: lambda need: projector(),
        VisionAttention: lambda need: rand(n),
        VisionKeys: lambda need: rand(n, 8) - 0.5,
    }
    return {need: make[type(need)](need) for need in needs}


def scorer(width, heads=4, seed=0):
    """An untrained one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Scorer(width, heads).eval().requires_grad_(False)


def without_coords(tokens: VisualTokens) -> VisualTokens:
    return dataclasses.replace(
        tokens, coords=torch.full_like(tokens.coords, -1), grids=tuple(None for _ in tokens.grids)
    )
