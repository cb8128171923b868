"""Keep every visible key: the fallback, and the pattern of rows that are few."""

from __future__ import annotations

from dataclasses import dataclass

from ..sparse_attention.index import Launch
from .bands import block_launch, visible_blocks
from .base import register
from .view import View, ViewPattern


@register("dense")
@dataclass(frozen=True, kw_only=True)
class DensePattern(ViewPattern):
    """Keep every key at or before the row, which is ordinary causal attention."""

    @property
    def is_identity(self) -> bool:
        return True

    def select(self, view: View) -> list[Launch]:
        return [block_launch(view, visible_blocks(view, self.tile, self.run), self.tile, self.run)]
