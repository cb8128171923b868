"""Where the grids of visual tokens lie on an image: padding, crops, tiles and overviews, by each family's processor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..estimation.tiles import Size, aspect_tiles, largest_within
from ..prompt import seen_box
from ..reporting import VisualMap
from .areas import Heat, Mask

Place = tuple[float, float, float, float]
"""Left, top, right, bottom of a grid in pixels of the image; beyond it where the processor pads."""

Places = Callable[[int, Size, Any, Any], list[Place]]
"""(grids, (height, width) of the image, model config, image processor) -> a place for every grid, in their order."""


def whole(count: int, size: Size, config: Any, images: Any) -> list[Place]:
    """Place every grid on the whole image: it was resized, or an overview stands beside the same in detail."""
    return [(0.0, 0.0, float(size[1]), float(size[0]))] * count


def square(count: int, size: Size, config: Any, images: Any) -> list[Place]:
    """Place the one grid on what is left of the image by padding to a square, or by a crop of the middle."""
    left, top, right, bottom = seen_box(images, (size[1], size[0]))
    return [(float(left), float(top), float(right), float(bottom))]


def tiled(grid: Size, count: int, size: Size) -> list[Place]:
    """Place tiles row by row, and the overview behind them."""
    rows, columns = grid
    if count != rows * columns + 1:
        raise ValueError(
            f"an image of {size[1]}x{size[0]} pixels became {count} tiles, not the {rows * columns} of its aspect and "
            "an overview: where they lie is not known"
        )
    high, wide = size[0] / rows, size[1] / columns
    cut = [(c * wide, r * high, (c + 1) * wide, (r + 1) * high) for r in range(rows) for c in range(columns)]
    return [*cut, *whole(1, size, None, None)]


def shuffled_tiles(count: int, size: Size, config: Any, images: Any) -> list[Place]:
    """Place the tiles of InternVL: those nearest in aspect, and a thumbnail behind several."""
    if count == 1:
        return whole(count, size, config, images)
    side = images.size["height"]
    return tiled(aspect_tiles(size, side, images.min_patches, images.max_patches), count, size)


def written_tiles(count: int, size: Size, config: Any, images: Any) -> list[Place]:
    """Place the tiles of Idefics3 and SmolVLM: the image stretched to whole ones, and an overview behind them."""
    if count == 1:
        return whole(count, size, config, images)
    longest, tile = images.size["longest_edge"], images.max_image_size["longest_edge"]
    return tiled(largest_within(size, longest, tile), count, size)


RESIZED = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen2_5_omni_thinker",
    "qwen3_omni_moe_thinker", "glm4v", "glm4v_moe", "glm46v", "paddleocr_vl", "video_llama_3", "gemma3", "gemma4",
    "paligemma", "mistral3", "llava_next", "llava_onevision",
)  # fmt: skip
PLACES: dict[str, Places] = {
    **dict.fromkeys(RESIZED, whole),
    **dict.fromkeys(("llava", "vipllava"), square),
    **dict.fromkeys(("idefics3", "smolvlm"), written_tiles),
    "internvl": shuffled_tiles,
}


def check_places(config: Any) -> None:
    """Raise `ValueError` for a model of which nobody says where its tokens lie on an image."""
    if config.model_type not in PLACES:
        raise ValueError(
            f"where visual tokens of model_type={config.model_type!r} lie on an image is not known, so there is "
            f"nothing to cut out; known: {', '.join(sorted(PLACES))}"
        )


def places(maps: Sequence[VisualMap], size: tuple[int, int], model: Any, processor: Any) -> list[Place]:
    """Return the place of every grid of an image of `size` (width, height).

    Raises:
        ValueError: an unknown family, tokens that lie on no grid, or more grids than the processor's rule tells.
    """
    check_places(model.config)
    if any(m.grid is None or m.grid[0] != 1 for m in maps):
        raise ValueError("the visual tokens lie on no known grid of an image, so there is nothing to cut out")
    found = PLACES[model.config.model_type](len(maps), size[::-1], model.config, processor.image_processor)
    if len(found) != len(maps):
        raise ValueError(f"the prompt shows {len(maps)} grids of tokens, its processor has {len(found)} by rule")
    return found


def paint(
    values: Tensor, maps: Sequence[VisualMap], where: Sequence[Place], size: tuple[int, int], canvas: tuple[int, int]
) -> Heat:
    """Paint values fp32 [n] of the visual tokens over an image; where several grids show a pixel, their mean.

    Args:
        size: (width, height) of the image. canvas: (width, height) of what is painted, as large or smaller.

    Returns:
        fp32 [height, width], bilinear between the middles of cells, NaN where no token shows the image.
    """
    total = np.zeros(canvas[::-1], dtype=np.float32)
    times = np.zeros(canvas[::-1], dtype=np.float32)
    scale = (canvas[0] / size[0], canvas[1] / size[1])
    for m, own, place in zip(maps, values.cpu().split([len(m.kept) for m in maps]), where, strict=True):
        left, right = (round(place[i] * scale[0]) for i in (0, 2))
        top, bottom = (round(place[i] * scale[1]) for i in (1, 3))
        high, wide = max(bottom - top, 1), max(right - left, 1)
        cells = F.interpolate(on_grid(own, m)[None, None], (high, wide), mode="bilinear", align_corners=False)[0, 0]
        rows = slice(max(top, 0), min(top + high, canvas[1]))
        columns = slice(max(left, 0), min(left + wide, canvas[0]))
        shown = cells[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        total[rows, columns] += shown.numpy()
        times[rows, columns] += 1
    return np.where(times > 0, total / np.maximum(times, 1), np.float32(np.nan))


def on_grid(values: Tensor, m: VisualMap) -> Tensor:
    """Return fp32 [h, w] from the tokens [n] of one grid; 0 where it has none, row separators left out."""
    _, h, w = m.grid or (1, 1, 1)
    patch = (m.coords >= 0).all(1)
    cells = torch.zeros(h, w)
    cells[m.coords[patch, 1], m.coords[patch, 2]] = values[patch].float()
    return cells


def tokens_in(mask: Mask, maps: Sequence[VisualMap], where: Sequence[Place], size: tuple[int, int]) -> Tensor:
    """Return Bool[n]: visual tokens whose cell has its middle in a mask [h, w] over an image of `size`.

    False for tokens that are no patch, and for cells beside the image.
    """
    out = []
    for m, (left, top, right, bottom) in zip(maps, where, strict=True):
        _, h, w = m.grid or (1, 1, 1)
        x = (left + (m.coords[:, 2] + 0.5) * (right - left) / w) * mask.shape[1] / size[0]
        y = (top + (m.coords[:, 1] + 0.5) * (bottom - top) / h) * mask.shape[0] / size[1]
        inside = (m.coords >= 0).all(1) & (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
        found = torch.zeros(len(m.kept), dtype=torch.bool)
        found[inside] = torch.from_numpy(mask)[y[inside].long(), x[inside].long()]
        out.append(found)
    return torch.cat(out)


def canvas_for(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return (width, height) of a canvas for an image of `size`, its longer side at most `longest`."""
    scale = min(1.0, longest / max(size))
    return max(1, math.ceil(size[0] * scale)), max(1, math.ceil(size[1] * scale))
