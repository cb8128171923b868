"""Contrast with a blank image: the cheap control of noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Away, SeesPixels, register


@register("blank_contrast")
@dataclass(frozen=True, kw_only=True)
class BlankContrast(Away, SeesPixels):
    """Moves away from the answer to an image of the mean colour: a control that tells noise from the image's absence.

    The mean colour is 0 after normalisation, for processors that subtract one.
    """

    reads = "blank image"

    def change(self, frame: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """Return the mean colour."""
        return torch.zeros_like(frame)
