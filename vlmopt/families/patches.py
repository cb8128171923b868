"""From what the vision tower sees to visual tokens: pixels under a token, and the order of patches in the projector."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


def patch_cells(pixels: Tensor, config: Any) -> Tensor:
    """Group Qwen-VL pixels [P, C*T*p*p], patch by patch, into merged cells: [P/m^2, C, m^2*T*p*p]."""
    vision = config.vision_config
    group, channels = vision.spatial_merge_size**2, getattr(vision, "in_channels", 3)
    return pixels.view(-1, group, channels, pixels.shape[1] // channels).transpose(1, 2).flatten(2)


def first_copy(pixels: Tensor, config: Any) -> Tensor:
    """Keep the first temporal copy, of T, of patches [P, C*T*p*p]: [P, C*p*p]."""
    vision = config.vision_config
    return pixels.view(len(pixels), -1, vision.temporal_patch_size, vision.patch_size**2)[:, :, 0].flatten(1)


def square_cells(pixels: Tensor, config: Any) -> Tensor:
    """Cut each image or tile into one square grid: [..., C, S, S] -> [B*g*g, C, (S/g)^2].

    g follows from the tokens per image.
    """
    pixels = pixels.flatten(0, -4)
    g = tokens_per_side(config)
    b, c, side, _ = pixels.shape
    p = side // g
    cut = pixels[..., : g * p, : g * p].view(b, c, g, p, g, p)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(b * g * g, c, p * p)


def tokens_per_side(config: Any) -> int:
    """Return the number of visual tokens along one side of a square image."""
    vision = config.vision_config
    size, patch = vision.image_size, vision.patch_size
    size, patch = (n if isinstance(n, int) else n[0] for n in (size, patch))
    if getattr(config, "mm_tokens_per_image", None):  # pooled to a fixed number
        return math.isqrt(config.mm_tokens_per_image)
    ratio = getattr(config, "downsample_ratio", getattr(vision, "pixel_shuffle_ratio", 1))
    return int(size // patch * ratio / getattr(config, "downsample_factor", 1))


def shuffled(outer: Any, values: Tensor) -> Tensor:
    """Group patches as InternVL's own pixel shuffle does: [B, P, c] -> [B, P/4, 4, c].

    It decides which patches share a token.
    """
    side, c = math.isqrt(values.shape[1]), values.shape[2]
    grid = values.view(values.shape[0], side, side, c)
    shuffled: Tensor = outer.pixel_shuffle(grid, scale_factor=outer.config.downsample_ratio)
    return shuffled.reshape(values.shape[0], -1, 4, c)
