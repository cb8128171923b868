"""Queries and keys with the structure that a video leaves in attention, for speed and recall without weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlmopt.kernels.patterns import Prefill

FRAME = 264  # tokens from one frame step to the next
KINDS = 3  # of query heads, by turns


def planted(tokens: int, heads: int, key_heads: int, d: int, device: str, dtype: torch.dtype, seed: int = 0) -> Prefill:
    """Return one layer of noise with structure planted in the keys.

    All heads have a sink and a window of about 100 tokens. By kind of head there are also columns that repeat with the
    frames, 64 single keys, or diagonals that repeat with the frames. Planted logits stand 9 to 12 above noise of
    deviation 1. Needs d >= 59 channels.
    """
    make = torch.Generator(device).manual_seed(seed)
    q = torch.randn(1, heads, tokens, d, device=device, dtype=dtype, generator=make)
    k, v = (torch.randn(1, key_heads, tokens, d, device=device, dtype=dtype, generator=make) for _ in range(2))
    at = torch.arange(tokens, device=device)

    def plant(channels: slice, rows: Tensor, keys: Tensor, gain: float, kind: int | None) -> None:
        """Add gain * rows . keys, [tokens, n] each, to the logits of the heads of a kind (None: of all)."""
        size = (gain * math.sqrt(d)) ** 0.5
        k[..., channels] = (keys * size).to(dtype)
        q[..., channels] = 0
        q[:, slice(None) if kind is None else slice(kind, None, KINDS), :, channels] = (rows * size).to(dtype)

    def columns(channel: int, keys: Tensor, gain: float, kind: int | None) -> None:
        plant(slice(channel, channel + 1), torch.ones_like(at)[:, None], keys[:, None], gain, kind)

    def waves(channel: int, frequency: Tensor, gain: float, kind: int | None) -> None:
        """Add peaks where all cosines of frequency * distance are in phase."""
        angle = at[:, None] * frequency.to(device)
        wave = torch.cat([angle.cos(), angle.sin()], 1) / math.sqrt(len(frequency))
        plant(slice(channel, channel + wave.shape[1]), wave, wave, gain, kind)

    columns(0, at < 4, 12.0, None)
    waves(1, torch.linspace(0.002, 0.06, 12), 9.0, None)
    columns(25, at % FRAME == FRAME // 3, 9.0, 0)
    columns(26, torch.isin(at, torch.randperm(tokens // 2, device=device, generator=make)[:64]), 10.0, 1)
    waves(27, 2 * math.pi * torch.arange(1, 17) / FRAME, 12.0, 2)
    return Prefill(
        q, k, v, d**-0.5, heads=torch.arange(heads, device=device), frame=FRAME,
        modality=torch.ones(1, tokens, dtype=torch.long, device=device),
    )  # fmt: skip
