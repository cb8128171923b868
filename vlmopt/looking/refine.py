"""Make the second image: black outside the areas, cut down to their box, enlarged to the first one's size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image

from .areas import Box, Mask


def masked(image: Image.Image, pixels: Mask) -> Image.Image:
    """Return an RGB image that is black where `pixels` [height, width] is False; the same object where that is nowhere.

    Raises:
        ValueError: a mask of another size.
    """
    if pixels.shape != image.size[::-1]:
        raise ValueError(f"a mask of {pixels.shape} (height, width) does not fit an image of {image.size[::-1]}")
    if pixels.all():
        return image
    return Image.fromarray(np.asarray(image.convert("RGB")) * pixels[..., None].astype(np.uint8))


def cropped(image: Image.Image, pixels: Mask, box: Box, limit: int) -> Image.Image:
    """Return the box of the masked image, enlarged until it covers the size of the image, its aspect kept.

    Args:
        limit: pixels that it has at most.
    """
    cut = masked(image, pixels)
    if box == (0, 0, *image.size):
        return cut
    cut = cut.crop(box)
    factor = max(image.width / cut.width, image.height / cut.height)
    factor = min(factor, math.sqrt(limit / (cut.width * cut.height)))
    size = tuple(max(1, math.floor(side * factor + 1e-9)) for side in cut.size)
    return cut.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def pixel_limit(processor: Any, image: Image.Image) -> int:
    """Return how many pixels a second image may have: the processor's own limit, else those of the first one."""
    how = processor.image_processor
    most = getattr(how, "max_pixels", None)
    if most is None and hasattr(how, "merge_size"):  # of an image of any grid, this edge counts all of its pixels
        most = dict(how.size).get("longest_edge")
    return int(most or image.width * image.height)
