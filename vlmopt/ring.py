"""Draw a ring on an image, where something clicks."""

from __future__ import annotations

from PIL import Image, ImageDraw


def ring(image: Image.Image, x: float, y: float, colour: tuple[int, int, int], radius: int) -> None:
    """Draw a circle with a dot in it, clipped to the image.

    A pale rim makes it visible on every ground.
    """
    x, y = (min(max(place, 0), side - 1) for place, side in zip((x, y), image.size, strict=True))
    draw = ImageDraw.Draw(image)
    for width, ink in ((10, (255, 255, 255)), (5, colour)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=ink, width=width)
    draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour, outline=(255, 255, 255))
