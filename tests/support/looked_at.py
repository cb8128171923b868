"""The picture that tests of the second look ask about."""

from __future__ import annotations

from PIL import Image, ImageDraw


def scene() -> Image.Image:
    """Draw a red circle at the right and a blue square at the left, on white."""
    image = Image.new("RGB", (224, 160), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((150, 30, 190, 70), fill="red")
    draw.rectangle((30, 90, 80, 140), fill="blue")
    return image
