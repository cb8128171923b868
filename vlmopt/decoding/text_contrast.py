"""Contrast with the text alone: what the language model would say without the images."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Away, register


@register("text_contrast")
@dataclass(frozen=True, kw_only=True)
class TextContrast(Away):
    """Moves away from the answer without images (guidance of Paying More Attention to Image, arXiv 2407.21771).

    Its gamma is 1 + alpha, 1.1 in the paper. No second run of the vision tower: text and generated tokens run twice.
    """

    reads = "text without images"
