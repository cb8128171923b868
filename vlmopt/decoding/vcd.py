"""Contrast with a noisy image, as a diffusion model would have made it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmopt.core import setting

from .base import Away, SeesPixels, register

STEPS = 1000


def remaining() -> Tensor:
    """Return fp64 [1000]: the share of the image's variance that is left after every step of noise."""
    betas = torch.linspace(-6, 6, STEPS, dtype=torch.float64).sigmoid() * (5e-3 - 1e-5) + 1e-5
    return (1 - betas).cumprod(0)


@register("vcd")
@dataclass(frozen=True, kw_only=True)
class VCD(Away, SeesPixels):
    """Moves away from the answer to a noisy image (Visual Contrastive Decoding, arXiv 2311.16922).

    Noise is drawn once per pixel, from the policy's seed and the image's own bytes: not the batch, its order, nor a
    run that was resumed changes an answer. The published t = 500 keeps 86 % of the image's amplitude.
    """

    reads = "noisy image"

    t: int = setting(500, "Steps of noise of 1000: how much of the image is left.", "int", min=0, max=STEPS - 1)

    def change(self, frame: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """Return sqrt(a) x + sqrt(1 - a) e, with a the variance that is left after `t` steps."""
        left = float(remaining()[self.t])
        noisy: Tensor = left**0.5 * frame + (1 - left) ** 0.5 * draw().to(frame)
        return noisy
