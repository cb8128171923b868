"""What evictions that read attention have in common: importance of keys, and MixKV's diversity beside it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from vlmopt.core import setting

from .base import Eviction
from .mix_kv import mixed
from .view import KVView


@dataclass(frozen=True, kw_only=True)
class ImportanceEviction(Eviction):
    """Base of evictions whose score is the attention that a key receives."""

    mix: bool = setting(
        False,
        "Mix importance with diversity, head by head (MixKV); heads with similar keys ask for more of it.",
        "bool",
    )

    @abstractmethod
    def importance(self, view: KVView) -> Tensor:
        """Return fp32 [B, Hk, n] >= 0: attention that every key receives."""

    def score(self, view: KVView) -> Tensor:
        importance = self.importance(view)
        return mixed(view, importance) if self.mix else importance
