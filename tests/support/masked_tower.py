"""The oracle of pruning before the vision tower: the dense tower, whose attention may not see the patches that left.

It knows nothing of the library. Every patch runs through every block; where the tower put which patch is learned from a
run on noise, by comparing what enters the first block with what the patch embedding made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

NAME = "masked_tower"


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, **kwargs: Any) -> Any:
    """One segment [1, H, n, d] after the other, in the tower's order."""
    oracle = module.masked_tower
    start = oracle.done.get(id(module), 0)
    oracle.done[id(module)] = start + key.shape[2]
    gone = oracle.gone[start : start + key.shape[2]]
    scores = (query @ key.transpose(-1, -2)).float() * kwargs["scaling"] - 1e30 * gone.float()
    return (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2).contiguous(), None


Choice = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(pixels, grid) -> Bool[cells] that can be seen, Long[cells] whose features each of them shows in the end."""


class MaskedTower:
    """Takes over the vision tower of a model (not of a copy): `choose` is asked at every run."""

    def __init__(self, model: nn.Module, choose: Choice) -> None:
        AttentionInterface.register(NAME, _attention)
        self.tower: Any = model.get_submodule("model.visual")
        for module in self.tower.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation_internal = NAME
            object.__setattr__(module, "masked_tower", self)
        self.choose, self.learning = choose, False
        self.tower.register_forward_pre_hook(self._start, with_kwargs=True)
        self.tower.register_forward_hook(self._end)
        self.tower.patch_embed.register_forward_hook(self._embedded)
        self.tower.blocks[0].register_forward_pre_hook(self._enter, with_kwargs=True)

    @torch.no_grad()
    def features(self, pixels: Tensor, grid: Tensor) -> list[Tensor]:
        """[cells, d], then the same per DeepStack level."""
        return parts(self.tower(pixels, grid_thw=grid))

    def _start(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if self.learning:
            return
        pixels, grid = args[0] if args else kwargs["hidden_states"], kwargs.get("grid_thw", args[-1] if args else None)
        keep, anchor = self.choose(pixels, grid)
        self.keep, self.learning = torch.ones_like(keep).repeat_interleave(4), True
        self.tower(torch.randn_like(pixels), grid_thw=grid)
        self.keep, self.anchor, self.learning = keep.repeat_interleave(4), anchor, False

    def _end(self, module: Any, args: Any, out: Any) -> Any:
        return None if self.learning else changed(out, lambda features: features[self.anchor])

    def _embedded(self, module: Any, args: Any, output: Tensor) -> None:
        self.embedded = output

    def _enter(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if self.learning:
            hidden = args[0] if args else kwargs["hidden_states"]
            same = (hidden[:, None] == self.embedded).all(-1)
            permuted = bool(same.any(1).all())  # towers that add learned positions keep the order
            self.order = same.float().argmax(1) if permuted else torch.arange(len(hidden))
            assert len(self.order.unique()) == len(hidden)
        self.gone, self.done = ~self.keep[self.order], {}


def parts(out: Any) -> list[Tensor]:
    """Features and DeepStack levels of what a tower returned, across releases."""
    if hasattr(out, "pooler_output"):
        return [out.pooler_output, *(getattr(out, "deepstack_features", None) or [])]
    return [out[0], *out[1]] if isinstance(out, tuple) else [out]


def changed(out: Any, change: Any) -> Any:
    """The same output with other features."""
    if hasattr(out, "pooler_output"):
        out.pooler_output = change(out.pooler_output)
        if getattr(out, "deepstack_features", None):
            out.deepstack_features = [change(level) for level in out.deepstack_features]
        return out
    return (change(out[0]), [change(level) for level in out[1]]) if isinstance(out, tuple) else change(out)
