"""Run feature functions on smaller images, with their features spread over the full grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmopt.pruning.resize import block_of, resize_patches

from .call import Session

ARGUMENTS = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}


@dataclass(frozen=True, eq=False)
class ResizePlan:
    """One call of a feature function with smaller pixels."""

    pixels: str  # argument names
    grid: str
    arguments: dict[str, Any]
    full: Tensor  # Long[k, 3] (t, h, w) in merged cells
    small: Tensor  # Long[k, 3]
    lengths: list[int]

    def run(self, original: Callable[..., Any], bound: dict[str, Any]) -> tuple[Any, list[int]]:
        """Return the function's output with its features spread over the full grid, and the full lengths."""
        out = original(**{**bound, **self.arguments})
        blocks = [
            torch.cat([block_of(*f[1:], *s[1:]) + t * s[1] * s[2] for t in range(f[0])])
            for f, s in zip(self.full.tolist(), self.small.tolist(), strict=False)
        ]
        return changed(out, self.small.prod(1).tolist(), lambda items: self.spread(items, blocks)), self.lengths

    def spread(self, items: list[Tensor], blocks: list[Tensor]) -> list[Tensor]:
        """Give every cell of the full grid the features of the coarse cell in which it lies."""
        return [x[block.to(x.device)] for x, block in zip(items, blocks, strict=False)]


def changed(out: Any, lengths: list[int], change: Callable[[list[Tensor]], list[Tensor]]) -> Any:
    """Return what a Qwen model's feature function returned, in any of its shapes, with changed features.

    Args:
        lengths: tokens per image. change: features per image [n, d] -> features per image.
    """

    def level(features: Any) -> Any:
        """Change one DeepStack level: a tensor over all images, or one tensor per image, depending on the release."""
        if isinstance(features, Tensor):
            return torch.cat(change(list(features.split(lengths))))
        return type(features)(change(list(features)))

    if hasattr(out, "pooler_output"):
        out.pooler_output = tuple(change(list(out.pooler_output)))
        if getattr(out, "deepstack_features", None) is not None:
            out.deepstack_features = [level(x) for x in out.deepstack_features]
        return out
    if len(out) == 2 and isinstance(out[1], list):  # up to 4.57: (embeds, deepstack)
        return tuple(change(list(out[0]))), [level(x) for x in out[1]]
    return tuple(change(list(out)))


def levels_of(out: Any, lengths: list[int]) -> list[list[Tensor]]:
    """Return features per image [n, d] of what a feature function returned, and those of every DeepStack level."""
    found: list[list[Tensor]] = []

    def keep(items: list[Tensor]) -> list[Tensor]:
        found.append(items)
        return items

    changed(out, lengths, keep)
    return found


def plan_smaller(
    session: Session, modality: str, bound: dict[str, Any], grid_of: Callable[[int, int, int], tuple[int, int]]
) -> ResizePlan:
    """Plan the pixels of this call at the size (h, w) that `grid_of` gives for each (t, h, w), in merged cells."""
    pixels, grid = ARGUMENTS[modality]
    vision = session.model.config.vision_config
    merge = vision.spatial_merge_size
    patches = bound[grid].cpu()
    full = patches // torch.tensor([1, merge, merge])
    small = torch.tensor([[t, *grid_of(t, h, w)] for t, h, w in full.tolist()])
    resized = resize_patches(
        bound[pixels],
        patches,
        small * torch.tensor([1, merge, merge]),
        vision.patch_size,
        merge,
        vision.temporal_patch_size,
    )
    arguments = {pixels: resized, grid: (small * torch.tensor([1, merge, merge])).to(bound[grid])}
    return ResizePlan(pixels, grid, arguments, full, small, full.prod(1).tolist())
