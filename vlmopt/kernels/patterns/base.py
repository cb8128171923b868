"""The contract of a pattern: what it may know of a prefill, and the launches that it answers with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmopt.core import Configured, Registry, setting, validate

from ..sparse_attention.index import Launch, tile_count
from .prefill import Prefill
from .tables import blocks_to_index, csr

__all__ = ["Pattern", "blocks_to_index", "csr", "register", "registry", "tile_span"]

TILES = (16, 32, 64, 128, 256)
LONGEST = 2**16  # tokens that one setting may lay out side by side, whatever the length of the prompt


@dataclass(frozen=True, kw_only=True)
class Pattern(Configured, ABC):
    """Base of every pattern: tile sizes and `build`.

    Raises:
        TypeError, ValueError: a setting of the wrong type or out of range.
    """

    name: ClassVar[str] = ""  # set by `register`
    reads: ClassVar[str] = "nothing"  # what the kept keys depend on, in words, for tables

    tile: int = setting(64, "Query rows that share their keys: 16, 32, 64, 128 or 256.", "int")
    run: int = setting(64, "Neighbouring keys that are read together: 16, 32, 64, 128 or 256.", "int")

    def __post_init__(self) -> None:
        label = self.name or type(self).__name__
        validate(self, label)
        for what in ("tile", "run"):
            if getattr(self, what) not in TILES:
                raise ValueError(f"{label}: {what} must be one of {TILES}, got {getattr(self, what)!r}")

    @property
    def is_identity(self) -> bool:
        """True if every visible key is kept whatever the prompt."""
        return False

    def check_heads(self, key_heads: int) -> None:
        """Raise `ValueError` if a layer with so many key heads cannot have this pattern."""

    @abstractmethod
    def build(self, prefill: Prefill) -> list[Launch]:
        """Choose the keys of all `prefill.heads` at once; the key sets of the launches of one row are disjoint."""


def tile_span(prefill: Prefill, tile: int) -> tuple[Tensor, Tensor]:
    """Return positions Long[B, T] of the first and of the last real row of each tile of rows in natural order.

    A tile of padding alone has a last row before its first.
    """
    start = torch.arange(tile_count(prefill.rows, tile), device=prefill.device) * tile
    first = torch.maximum(start + prefill.offset[:, None], prefill.key_first[:, None])
    last = torch.minimum(start + tile, prefill.row_end[:, None]) - 1 + prefill.offset[:, None]
    return first, last


registry: Registry[Pattern] = Registry(Pattern)  # type: ignore[type-abstract]
register = registry.register
