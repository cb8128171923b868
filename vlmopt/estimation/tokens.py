"""How many visual tokens an image becomes: the rules of each family's own processor, from the size in pixels alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .tiles import Size, any_resolution_tiles, aspect_tiles, capped, largest_within, longest_edge, nearest_grid

Settings = Mapping[str, Any]  # of a preprocessor_config.json; may be empty


@dataclass(frozen=True)
class ImageTokens:
    """What one image costs: items for the tower, rows for the projector, tokens of the prompt."""

    grids: tuple[Size, ...]  # patches (h, w) of each item that the tower encodes: the whole image, or its tiles
    projected: int  # rows that leave the projector
    tokens: int  # visual tokens in the prompt
    framing: int = 0  # tokens of text that the processor or the chat template puts around and between them
    padded: int = 0  # patches that the tower computes for each item whatever its grid; 0: those of the grid

    @property
    def patches(self) -> tuple[int, ...]:
        """Patches that the tower computes for each item."""
        return tuple(self.padded or h * w for h, w in self.grids)


Rule = Callable[[Size, Any, Settings, bool], ImageTokens]
"""(pixels (height, width), model config, processor settings, whether it is the only image) -> ImageTokens."""


def image_tokens(size: Size, config: Any, settings: Settings, alone: bool = True) -> ImageTokens:
    """Apply the rule of the config's family to an image of `size` (height, width) pixels.

    Raises:
        ValueError: a side below 1, a family without a rule, or an image that its processor refuses.
    """
    if min(size) < 1:
        raise ValueError(f"an image must be at least 1 pixel wide and high, got {size[1]}x{size[0]}")
    rule = RULES.get(config.model_type)
    if rule is None:
        raise ValueError(
            f"model_type {config.model_type!r} has no rule that tells how many visual tokens an image becomes; known: "
            f"{', '.join(sorted(RULES))}"
        )
    return rule(size, config, settings, alone)


def native(size: Size, config: Any, settings: Settings, alone: bool) -> ImageTokens:
    """Count for Qwen-VL: sides rounded to whole merged cells, area kept between two bounds."""
    vision = config.vision_config
    merge = vision.spatial_merge_size
    edges = settings.get("size") or {}
    low, high = (3136, 12845056) if vision.patch_size == 14 else (65536, 16777216)
    least = settings.get("min_pixels") or edges.get("shortest_edge") or low
    most = settings.get("max_pixels") or edges.get("longest_edge") or high
    if max(size) / min(size) > 200:
        raise ValueError(f"the processor refuses {size[1]}x{size[0]}: one side is more than 200 times the other")
    cells = capped(size, vision.patch_size * merge, least, most)
    tokens = math.prod(cells)
    return ImageTokens(((cells[0] * merge, cells[1] * merge),), tokens, tokens, framing=2)


def square(size: Size, config: Any, settings: Settings, alone: bool) -> ImageTokens:
    """Count for LLaVA, PaliGemma: one square of fixed size; a CLS token only where all features are taken."""
    side = patches_per_side(config)
    cls = has_cls(config) and getattr(config, "vision_feature_select_strategy", "full") == "full"
    return ImageTokens(((side, side),), side**2 + cls, side**2 + cls)


def pooled_square(size: Size, config: Any, settings: Settings, alone: bool) -> ImageTokens:
    """Count for Gemma3: one square, pooled to a fixed number, between blank lines and two markers."""
    side, tokens = patches_per_side(config), config.mm_tokens_per_image
    return ImageTokens(((side, side),), tokens, tokens, framing=4)


def convolved_square(size: Size, config: Any, settings: Settings, alone: bool) -> ImageTokens:
    """Count for FastVLM: one square, 64 times smaller behind its convolutions, whose rows are pixels."""
    side = (settings.get("crop_size") or {}).get("height") or 1024
    return ImageTokens(((side, side),), (side // 64) ** 2, (side // 64) ** 2)


def next_tiles(size: Size, config: Any, settings: Settings, alone: bool) -> ImageTokens:
    """Count for LLaVA-NeXT: an overview, and tiles without their padding, a newline token after each row."""
    side = patches_per_side(config)
    tiles, (h, w) = any_resolution_tiles(size, config.image_grid_pinpoints, config.vision_config.image_size, side)
    count = tiles[0] * tiles[1] + 1
    cls = has_cls(config) and config.vision_feature_select_strategy == "full"
    return ImageTokens(((side, side),) * count, count * (side**2 + cls), side**2 + cls + h * (w + 1))


def onevision_tiles(size: Size, config: Any, settings: Settings, alone: bool) -> ImageTokens:
    """Count for LLaVA-OneVision: as LLaVA-NeXT, shrunk to so many tiles' worth; among several images a single tile."""
    side = patches_per_side(config)
    if not alone:
        return ImageTokens(((side, side),), side**2, side**2 + 1)
    tiles, (h, w) = any_resolution_tiles(size, config.image_grid_pinpoints, config.vision_config.image_size, side)
    ratio = math.sqrt(h * w / (int(config.vision_aspect_ratio.removeprefix("anyres_max_")) * side**2))
    if ratio > 1.1:
        h, w = int(h // ratio), int(w // ratio)
    count = tiles[0] * tiles[1] + 1
    return ImageTokens(((side, side),) * count, count * side**2, side**2 + h * (w + 1))


def shuffled_tiles(size: Size, config: Any, settings: Settings, alone: bool) -> ImageTokens:
    """Count for InternVL: square tiles nearest in aspect, and a thumbnail behind several; 2x2 patches a token."""
    side = patches_per_side(config)
    per_tile = int(side**2 * config.downsample_ratio**2)
    least, most = settings.get("min_patches", 1), settings.get("max_patches", 12)
    image = first(config.vision_config.image_size)
    grid = aspect_tiles(size, image, least, most) if settings.get("crop_to_patches", True) and most > 1 else (1, 1)
    count = math.prod(grid)
    count += count > 1
    return ImageTokens(((side, side),) * count, count * per_tile, count * per_tile, framing=2)


def written_tiles(size: Size, config: Any, settings: Settings, alone: bool) -> ImageTokens:
    """Count for Idefics3, SmolVLM: stretched to whole tiles, each behind a written place, and an overview."""
    tile = config.vision_config.image_size
    largest = (settings.get("size") or {}).get("longest_edge") or 4 * tile
    side = patches_per_side(config)
    per_tile = side**2 // config.scale_factor**2
    grid = largest_within(size, largest, tile) if settings.get("do_image_splitting", True) else (1, 1)
    split = math.prod(grid) if max(grid) > 1 else 0
    # Of a tile: two marks before it; of a row: a newline; of the overview: two marks, one behind, and a blank line.
    framing = 3 + (2 * split + grid[0] if split else 0)
    count = split + 1
    return ImageTokens(((side, side),) * count, count * per_tile, count * per_tile, framing)


def broken_rows(size: Size, config: Any, settings: Settings, alone: bool) -> ImageTokens:
    """Count for Mistral3: at most so long, sides rounded up to whole merged cells; a break token ends every row."""
    vision, merge = config.vision_config, config.spatial_merge_size
    largest = (settings.get("size") or {}).get("longest_edge") or vision.image_size
    h, w = longest_edge(size, largest, vision.patch_size * merge)
    return ImageTokens(((h * merge, w * merge),), h * w, h * w, framing=h)


def pooled_native(size: Size, config: Any, settings: Settings, alone: bool) -> ImageTokens:
    """Count for Gemma4: as large as a budget of patches allows, in whole pooled cells; the tower pads to it."""
    vision = config.vision_config
    pool, most = vision.pooling_kernel_size, settings.get("max_soft_tokens") or 280
    h, w = nearest_grid(size, vision.patch_size * pool, most)
    return ImageTokens(((h * pool, w * pool),), h * w, h * w, framing=2, padded=most * pool**2)


def native_tiles(size: Size, config: Any, settings: Settings, alone: bool) -> ImageTokens:
    """Count for LFM2-VL: whole if small, else square tiles and a thumbnail; every item padded to the same patches."""
    factor, patch = config.downsample_factor, config.vision_config.patch_size
    least, most = settings.get("min_image_tokens", 64), settings.get("max_image_tokens", 256)
    tile, cell = settings.get("tile_size", 512), patch * factor
    h, w = capped(size, cell, least * cell**2, most * cell**2)
    h, w = max(h, 1), max(w, 1)
    split = settings.get("do_image_splitting", True)
    area = math.prod(max(patch, round(side / cell) * cell) for side in size)
    padded = max(most * factor**2, (tile // patch) ** 2 if split else 0)
    if not split or area <= most * cell**2 * settings.get("max_pixels_tolerance", 2.0):
        return ImageTokens(((h * factor, w * factor),), h * w, h * w, framing=2, padded=padded)
    grid = aspect_tiles(size, tile, settings.get("min_tiles", 2), settings.get("max_tiles", 10))
    side, count = tile // patch, math.prod(grid)
    tokens = count * math.ceil(side / factor) ** 2
    grids = ((side, side),) * count
    if settings.get("use_thumbnail", True) and count > 1:
        grids, tokens, count = (*grids, (h * factor, w * factor)), tokens + h * w, count + 1
    return ImageTokens(grids, tokens, tokens, framing=2 + count, padded=padded)


def patches_per_side(config: Any) -> int:
    """Return the patches along one side of a square item."""
    vision = config.vision_config
    return int(first(vision.image_size) // first(vision.patch_size))


def has_cls(config: Any) -> bool:
    """Return whether the tower's first row stands for no patch."""
    return config.vision_config.model_type in ("clip_vision_model", "internvl_vision")


def first(value: Any) -> int:
    """Return a side from a number or a pair."""
    return int(value if isinstance(value, int) else value[0])


RULES: dict[str, Rule] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), native),
    **dict.fromkeys(("llava", "paligemma"), square),
    **dict.fromkeys(("idefics3", "smolvlm"), written_tiles),
    "llava_next": next_tiles,
    "llava_onevision": onevision_tiles,
    "internvl": shuffled_tiles,
    "gemma3": pooled_square,
    "gemma4": pooled_native,
    "mistral3": broken_rows,
    "lfm2_vl": native_tiles,
    "fast_vlm": convolved_square,
}
