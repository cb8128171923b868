"""SnapKV: keep what the end of the prompt attends to, and the surroundings of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmopt.core import setting

from .base import register
from .importance import ImportanceEviction
from .pooling import pool_grid, pool_sequence
from .view import KVView

POOLING = ("grid", "sequence", "none")


@register("snap_kv")
@dataclass(frozen=True, kw_only=True)
class SnapKV(ImportanceEviction):
    """Mean attention of the last rows of the prompt, smoothed over neighbours, mean over the heads that share keys.

    SnapKV: LLM Knows What You are Looking for Before Generation (arXiv 2404.14469). The paper smooths along the
    sequence, where the patch above is a row of patches away; `pooling="grid"` smooths over the 3 x 3 patches around a
    visual key, and along the sequence elsewhere.
    """

    reads = "attention"
    query_aware = True

    window: int = setting(64, "Last rows of the prompt whose attention is read.", "int", min=1)
    pooling: str = setting(
        "grid", "Smooth over neighbours on the patch grid, along the sequence, or not.", "str", choices=POOLING
    )
    kernel: int = setting(5, "Keys that are averaged along the sequence; an odd number.", "int", min=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise ValueError(f"{self.label}: kernel must be odd, so that it has a middle, got {self.kernel}")

    @property
    def rows(self) -> int:
        return self.window

    @property
    def on_grid(self) -> bool:
        return self.pooling == "grid"

    def importance(self, view: KVView) -> Tensor:
        rows = view.attention.rows
        weights = view.attention.weights * rows[:, None, :, None]
        received = view.of_heads(weights.sum(2)) / rows.sum(1).clamp_min(1)[:, None, None]
        if self.pooling == "none":
            return received
        pooled = pool_sequence(received, self.kernel)
        if self.pooling == "sequence" or view.neighbours is None:
            return pooled
        return pool_grid(received, pooled, view.neighbours)
