"""A-shape: the first keys and the last ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmopt.core import setting

from ..sparse_attention.index import Launch
from .bands import band_blocks, block_launch
from .base import register
from .view import View, ViewPattern


@register("a_shape")
@dataclass(frozen=True, kw_only=True)
class AShape(ViewPattern):
    """Keep the first `sink` keys and the `local` last ones before each row, rounded up to whole blocks.

    One of the patterns of MMInference (arXiv 2504.16083), from MInference 1.0 (arXiv 2407.02490). Both at 0 keep
    nothing; so a pair of a 2-D boundary is left out.
    """

    sink: int = setting(128, "First keys that every row keeps.", "int", min=0)
    local: int = setting(1024, "Last keys that a row keeps, itself included.", "int", min=0)

    def select(self, view: View) -> list[Launch]:
        return [block_launch(view, self.blocks(view), self.tile, self.run)]

    def blocks(self, view: View) -> Tensor:
        """Return Bool[B, 1, T, N]: the kept blocks."""
        return band_blocks(view, self.tile, self.run, self.sink, self.local)
