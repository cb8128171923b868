"""Tri-shape: keep an A-shape, and every key for the last rows of the prompt."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmopt.core import setting

from .a_shape import AShape
from .bands import visible_blocks
from .base import register
from .view import View


@register("tri_shape")
@dataclass(frozen=True, kw_only=True)
class TriShape(AShape):
    """Keep an A-shape, and every key in tiles with one of the `last` rows (baseline of MMInference, arXiv 2504.16083).

    In a chunked prefill the last rows are those of the chunk.
    """

    last: int = setting(128, "Last rows that keep every key.", "int", min=0)

    def blocks(self, view: View) -> Tensor:
        high = view.span(self.tile)[1]
        end = view.limit.amax(-1, keepdim=True) if self.last else high.new_full((1, 1), view.width)
        last = (high > end - self.last)[:, None, :, None]
        return super().blocks(view) | (visible_blocks(view, self.tile, self.run) & last)
