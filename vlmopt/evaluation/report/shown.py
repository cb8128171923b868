"""Images inside the page: the sample's own with its clicks, and what a policy kept of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from ...overlay import GAP, overlay
from ..maps import load_maps
from ..records import Record
from .facts import Facts
from .palette import LIGHT, look

SIDE = 480  # pixels of an image
LEGEND = 48 + GAP  # height of the legend below an overlay, which the page has once for all


def kept_image(facts: Facts, record: Record) -> Image.Image:
    """Draw what was kept, on the image as the tower sees it, or on paper where there is none."""
    images = []
    if record.seen:
        with Image.open(facts.run / record.seen) as opened:
            images = [opened.convert("RGB")]
    drawn = overlay(images, load_maps(facts.run / str(record.map)))
    return drawn.crop((GAP, GAP, drawn.width - GAP, drawn.height - LEGEND))


def clicks(image: Image.Image, facts: Facts, dense: Record, others: Sequence[Record]) -> Image.Image:
    """Draw the target box and where every policy clicked, on a copy."""
    image, box = image.convert("RGB"), dense.extra.get("box")
    if not box:
        return image
    scale = min(1.0, SIDE / max(image.size))
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    draw = ImageDraw.Draw(image)
    draw.rectangle([side * scale for side in box], outline=LIGHT["paper"], width=4)
    draw.rectangle([side * scale for side in box], outline=LIGHT["front"], width=2)
    for record in (dense, *others):
        point = record.extra.get("point")
        if point:
            x, y = (max(0.0, min(part * scale, side - 1)) for part, side in zip(point, image.size, strict=True))
            ink = LIGHT[look(facts.style(record.policy))[0]]
            draw.ellipse((x - 7, y - 7, x + 7, y + 7), outline=LIGHT["paper"], width=5)
            draw.ellipse((x - 6, y - 6, x + 6, y + 6), outline=ink, width=3)
    return image


class Embedded(NamedTuple):
    """An image as an address that holds it; sides in pixels."""

    source: str
    alt: str
    width: int
    height: int


def embedded(image: Image.Image, alt: str) -> Embedded:
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    small.save(packed, "WEBP", quality=80)
    source = f"data:image/webp;base64,{base64.b64encode(packed.getvalue()).decode()}"
    return Embedded(source, alt, small.width, small.height)
