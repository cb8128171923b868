"""Touch points inside the decoder: what is handed over where a layer begins and in its attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(eq=False)
class LayerInput:
    """What a decoder layer is about to run on; parts may change it in place."""

    layer: int
    module: nn.Module
    hidden: Tensor  # [B, W, d], physical rows; [B, W, s * d] where a layer is handed s streams of each
    given: dict[str, Any]  # the layer's other arguments by name
    cache: Any
    streams: int = 0  # 0: a single one, without a dimension of its own

    @staticmethod
    def of(layer: int, module: nn.Module, hidden: Tensor, given: dict[str, Any], cache: Any) -> LayerInput:
        """Lay streams [s, B, W, d], which Gemma3n's layers are handed, side by side."""
        if hidden.ndim == 3:
            return LayerInput(layer, module, hidden, given, cache)
        side_by_side = hidden.permute(1, 2, 0, 3).flatten(2)
        return LayerInput(layer, module, side_by_side, given, cache, hidden.shape[0])

    @property
    def handed(self) -> Tensor:
        """The hidden states in the shape in which the layer takes them."""
        return self.hidden.unflatten(2, (self.streams, -1)).permute(2, 0, 1, 3) if self.streams else self.hidden


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of the attention function of a decoder layer: queries and keys are rotated, and physical."""

    layer: int
    module: nn.Module
    query: Tensor  # [B, H, q, D]
    key: Tensor  # [B, Hk, kv, D]
    value: Tensor  # [B, Hk, kv, D]
    mask: Tensor | None  # the kernel's own: 4-D, 2-D for FlashAttention, None for causal
    options: Mapping[str, Any]  # what else the kernel is given

    @property
    def scaling(self) -> float:
        """What products are multiplied with."""
        given = self.options.get("scaling")
        return self.query.shape[-1] ** -0.5 if given is None else float(given)

    @property
    def softcap(self) -> float | None:
        """Bound of the logits."""
        return self.options.get("softcap")

    @property
    def window(self) -> int | None:
        """Keys that a row of a sliding layer sees."""
        return self.options.get("sliding_window")


class SidePass:
    """A pass beside the sequence, of which nothing stays; a subclass says what it is run for.

    Hooks of the sequence's own pass have nothing to do in it; attention that is routed through ours calls these.
    """

    def before_kernel(self, at: AttentionCall) -> None:
        """Act before the attention of a layer runs."""

    def behind_kernel(self, at: AttentionCall, out: Tensor) -> None:
        """Act after it has made `out` [B, q, H, D]."""
