"""Find where an answer clicks: the point that it names, in fractions of the image."""

from __future__ import annotations

import math

from PIL import Image

from ..families import click_units
from ..loading import Loaded
from ..metrics.clicks import Point, in_pixels, pointed

REACH = 0.05  # of the diagonal: about the size of a button


def click_of(loaded: Loaded, image: Image.Image, answer: str, units: str | None = None) -> tuple[float, float] | None:
    """Return (x, y) in fractions of the image's width and height.

    Args:
        units: of its coordinates (`choices.UNITS`); None for what the model's config or family says.

    Returns:
        None where the answer names no point inside the image, or nobody says what its coordinates mean.

    Raises:
        ValueError: unknown units.
    """
    found = pointed(answer)
    units = (found and found.units) or units or click_units(loaded.model.config)
    if found is None or units is None:
        return None
    resized = behind_processor(loaded, image) if units == "resized" else None
    x, y = (
        part / side for part, side in zip(in_pixels(found.place, units, image.size, resized), image.size, strict=True)
    )
    return (x, y) if 0 <= x <= 1 and 0 <= y <= 1 else None


def click_agreement(first: Point, second: Point, size: tuple[int, int]) -> float:
    """Return 1 for two clicks on one pixel, falling with their distance to 0 at `REACH` of the image's diagonal.

    Args:
        size: (width, height) of the image in whose pixels both clicks are.
    """
    return max(0.0, 1 - math.dist(first, second) / (REACH * math.hypot(*size)))


def behind_processor(loaded: Loaded, image: Image.Image) -> tuple[int, int] | None:
    """Return (width, height) of the image as the tower gets it, where the image processor says so (Qwen-VL)."""
    how = loaded.processor.image_processor
    grids = how(images=[image], return_tensors="pt").get("image_grid_thw")
    if grids is None:
        return None
    _, rows, columns = grids[0].tolist()
    return columns * how.patch_size, rows * how.patch_size
