"""Where an answer clicks: the point that it names, in fractions of the picture."""

from __future__ import annotations

from PIL import Image

from ..loading import Loaded
from ..metrics.clicks import UNITS_OF, in_pixels, point


def click_of(loaded: Loaded, image: Image.Image, answer: str) -> tuple[float, float] | None:
    """(x, y) in fractions of the picture's width and height; None where the answer names no point inside it.

    Coordinates are read in the units that the model's type was taught.
    """
    place = point(answer)
    if place is None:
        return None
    units = UNITS_OF.get(loaded.model.config.model_type, "pixels")
    resized = behind_processor(loaded, image) if units == "resized" else None
    x, y = (at / side for at, side in zip(in_pixels(place, units, image.size, resized), image.size, strict=True))
    return (x, y) if 0 <= x <= 1 and 0 <= y <= 1 else None


def behind_processor(loaded: Loaded, image: Image.Image) -> tuple[int, int] | None:
    """(width, height) of the picture as the tower gets it, where the image processor says so (Qwen-VL)."""
    how = loaded.processor.image_processor
    grids = how(images=[image], return_tensors="pt").get("image_grid_thw")
    if grids is None:
        return None
    _, rows, columns = grids[0].tolist()
    return columns * how.patch_size, rows * how.patch_size
