"""Prefills for tests of patterns, what they mean by the book, and which keys a plan keeps."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from vlmopt.kernels.patterns.prefill import Prefill
from vlmopt.kernels.sparse_attention import run_plan
from vlmopt.kernels.sparse_attention.reference import expand

LAYOUTS = {
    "whole": {},
    "chunk": {"rows": 150, "width": 333},
    "right": {"q_len": torch.tensor([270, 101]), "k_len": torch.tensor([270, 101])},
    "right, chunk": {"rows": 150, "width": 333, "q_len": torch.tensor([150, 37]), "k_len": torch.tensor([310, 64])},
    "left": {"k_start": torch.tensor([0, 100])},
    "grouped": {"query_heads": 6},
}


def layer(rows=270, width=None, batch=2, query_heads=4, key_heads=2, d=16, seed=0, scale=2.0, **given):
    generator = torch.Generator().manual_seed(seed)
    width = width or rows
    q = torch.randn(batch, query_heads, rows, d, generator=generator) * scale
    k, v = torch.randn(2, batch, key_heads, width, d, generator=generator).unbind()
    return Prefill(q, k, v, d**-0.5, heads=torch.arange(query_heads), **given)


def run(prefill, launches, **given):
    return run_plan(prefill, launches, **given)


def visible(prefill):
    """Bool[B, 1, Sq, W]: the causal mask among real rows and keys."""
    key = torch.arange(prefill.width)
    seen = (key <= prefill.position[:, :, None]) & (key >= prefill.key_first[:, None, None])
    return (seen & prefill.real[:, :, None])[:, None]


def masked(prefill, mask):
    """Softmax attention over a mask Bool[B, H, Sq, W], by the book."""
    each = prefill.key_heads
    logits = prefill.q[:, prefill.heads].double() @ prefill.k[:, each].double().mT * prefill.scale
    weights = logits.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0)
    return (weights @ prefill.v[:, each].double()).float()


def mask_of(prefill, launch):
    """Bool[B, H, Sq, W] of a launch over real keys."""
    return expand(prefill, launch)


def blocks_of(prefill, pattern):
    """Bool[B, H, T, N] of kept blocks, in the order of key slots."""
    (launch,) = pattern.build(prefill)
    counts = launch.index.run_ptr.diff(dim=-1)
    tile = torch.arange(counts.numel()).repeat_interleave(counts.flatten())
    keep = torch.zeros(counts.numel(), -(-prefill.width // pattern.run), dtype=torch.bool)
    keep[tile, launch.index.run_start.long() // pattern.run] = True
    return keep.view(*counts.shape, -1)


def topics(rows=1024, segments=8, heads=4, d=64, strength=3.0, seed=0):
    """Rows and keys of a segment share a direction; which segment a stretch of 128 tokens belongs to is shuffled."""
    generator = torch.Generator().manual_seed(seed)
    of = torch.arange(rows // 128).remainder(segments)[torch.randperm(rows // 128, generator=generator)]
    of = of.repeat_interleave(128)
    direction = normalize(torch.randn(segments, d, generator=generator), dim=1)
    q, k = torch.randn(2, 1, heads, rows, d, generator=generator).unbind()
    shared = direction[of] * strength * d**0.25
    v = torch.randn(1, heads, rows, d)
    return Prefill(q + shared, k + shared, v, d**-0.5, heads=torch.arange(heads)), of
