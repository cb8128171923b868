"""Add what the model says of a part of the image, chosen by a mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from vlmopt.core import setting, shown

from .base import Contrast, SeesPixels, register

Mask: TypeAlias = Callable[[Tensor], Tensor]
"""(pixels of one frame as the model takes them, [C, h, w] or [patches, values]) -> a mask that multiplies them."""


@register("local_contrast")
@dataclass(frozen=True, kw_only=True)
class LocalContrast(Contrast, SeesPixels):
    """Moves towards the answer to the part of the image inside a mask: (v + a l) / (1 + a).

    The sum is that of AGLA (Assembly of Global and Local Attention, arXiv 2406.12718), whose mask comes from a matching
    model; this one takes any mask, so it is not AGLA. `mask` is given in Python and is no part of a policy's file.
    """

    reads = "masked image"

    a: float = setting(2.0, "Weight of the masked image; 0 changes nothing.", "float", min=0)
    cutoff: float = setting(
        0.5, "Tokens below this fraction of the highest probability are excluded.", "float", min=0, max=1
    )
    paper_compat: bool = setting(
        False, "The published v + a l, whose logits are 1 + a times as large: it sharpens what is sampled.", "bool"
    )
    mask: Mask | None = field(default=None, compare=False, metadata={"given": True})  # in Python alone

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask is not None and not callable(self.mask):
            raise TypeError(
                f"{self.label}: mask must be a function of a frame's pixels that returns what to multiply them by, got "
                f"{shown(self.mask)} of type {type(self.mask).__name__}"
            )

    @property
    def weight(self) -> float:
        """Minus a / (1 + a)."""
        return -self.a / (1 + self.a)

    @property
    def lacks(self) -> str | None:
        """The mask, where there is none."""
        return None if self.mask else "mask=, a function of a frame's pixels that returns what to multiply them by"

    def step(self, scores: Tensor, beside: Tensor | None) -> Tensor:
        """Return the contrast, 1 + a times as sharp under `paper_compat`."""
        mixed = super().step(scores, beside)
        return (1 + self.a) * mixed if self.paper_compat else mixed

    def change(self, frame: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """Return the pixels inside the mask."""
        assert self.mask is not None  # `lacks` was asked
        return frame * self.mask(frame).to(frame)
