"""The cut-off of contrasts without their contrast: a control."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmopt.attention_fix import exclude
from vlmopt.core import setting

from .base import Decoding, register


@register("plausibility")
@dataclass(frozen=True, kw_only=True)
class Plausibility(Decoding):
    """Excludes tokens below a fraction of the highest probability: the control for what a contrast's cut-off does.

    Greedy decoding stays the same; when sampling, much of what contrasts gain is this (arXiv 2504.10020).
    """

    cutoff: float = setting(
        0.1, "Tokens below this fraction of the highest probability are excluded.", "float", min=0, max=1
    )

    @property
    def is_identity(self) -> bool:
        """True at a cut-off of 0."""
        return self.cutoff == 0

    def step(self, scores: Tensor, beside: Tensor | None) -> Tensor:
        """Return the logits that are left."""
        return exclude(scores, scores, self.cutoff)
