"""VL-Cache: keep what the question attends to, and give more keys to layers whose attention is spread."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmopt.core import setting
from vlmopt.pruning import TEXT

from .base import LAYER_BUDGETS, register
from .importance import ImportanceEviction
from .view import KVView


@register("vl_cache")
@dataclass(frozen=True, kw_only=True)
class VLCache(ImportanceEviction):
    """Attention received from the text behind the last image, summed over its rows; layers share by sparsity.

    VL-Cache: Sparsity and Modality-Aware KV Cache Compression (arXiv 2410.23317). The paper gives a tenth of the budget
    to the most recent keys; here they are `recent` and come on top of it, and so does the text.
    """

    reads = "attention"
    query_aware = True

    layer_budgets: str = setting(
        "adaptive",
        "How layers share the budget: evenly, falling with depth (pyramid), or the more the less sparse their "
        "attention is (adaptive).",
        "str",
        choices=LAYER_BUDGETS,
    )

    @property
    def rows(self) -> str:
        return TEXT

    def importance(self, view: KVView) -> Tensor:
        return view.of_heads((view.attention.weights * view.attention.rows[:, None, :, None]).sum(2))
