"""Make up a prompt for looking at: noise, and attention of known shape planted in it; no model and no weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..choices import PLANTED
from ..kernels.patterns import Prefill

WAVES = 31  # harmonics of the diagonals, two of the 64 dimensions each
FRAME = 196  # tokens


def planted(kind: str, tokens: int = 4096, seed: int = 0, gain: float = 14.0) -> Prefill:
    """Make one head of `tokens` tokens, dimension 64, in which every row attends to a few columns and diagonals.

    "grid": both repeat with every frame of 196 tokens. "timestamps": the diagonals, among vision tokens; before every
    frame stands a text of another length, so that the distance between frames is constant among vision tokens only.

    Args:
        gain: by how much planted logits stand out of noise of deviation 1.

    Raises:
        ValueError: an unknown kind, or not even two frames.
    """
    if kind not in PLANTED:
        raise ValueError(f"planted must be one of {', '.join(PLANTED)}, got {kind!r}")
    if tokens < 2 * FRAME:
        raise ValueError(f"tokens must be {2 * FRAME} or more, two frames of {FRAME}, got {tokens}")
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 1, 1, tokens, 64, generator=generator).unbind()
    place = torch.arange(tokens)
    if kind == "grid":
        modality, frame = torch.ones_like(place), FRAME
        strength = math.sqrt(gain * 8)  # the product of two is gain * sqrt(dimension)
        q[..., 0] = strength
        k[..., 0] = strength * (place % FRAME == FRAME - 1)
    else:
        gaps = torch.randint(1, 24, (tokens // FRAME + 1,), generator=generator)
        modality = torch.cat([torch.cat([torch.zeros(n), torch.ones(FRAME)]) for n in gaps.tolist()])[:tokens].long()
        place, frame = modality.cumsum(0) - 1, None
    vision = modality.bool()
    q[..., vision, 1 : 1 + 2 * WAVES] = waves(place[vision], gain)
    k[..., vision, 1 : 1 + 2 * WAVES] = waves(place[vision], gain)
    return Prefill(q, k, v, 1 / 8, heads=torch.zeros(1, dtype=torch.long), modality=modality[None], frame=frame)


def waves(place: Tensor, gain: float) -> Tensor:
    """Return [n, 2 * WAVES]: vectors whose products are largest, 8 * gain, at distances of whole frames."""
    angle = 2 * math.pi / FRAME * place[:, None] * torch.arange(1, WAVES + 1)
    return math.sqrt(8 * gain / WAVES) * torch.cat([angle.cos(), angle.sin()], -1)
