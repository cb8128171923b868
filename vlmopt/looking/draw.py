"""Draw where a second look was: the heat over the image, the areas outlined, their box, and the second image."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..analysis.cell_map import VIRIDIS
from ..overlay import ACCENT, CLICK, GAP, INK, PAPER
from .ask import SecondLook

PANEL = 480  # pixels of a panel's longer side
FOOT = 52


def draw(image: Image.Image, look: SecondLook) -> Image.Image:
    """Return the image under its heat map with the box, beside the second image; both answers stand below."""
    left, right = heated(image, look), fitted(look.image)
    answers = (f"first answer: {look.first_answer}", f"second answer: {look.answer}")
    font = ImageFont.load_default(size=15)
    columns = [
        max(panel.width, round(font.getlength(text))) for panel, text in zip((left, right), answers, strict=True)
    ]
    sheet = Image.new("RGB", (sum(columns) + 3 * GAP, max(left.height, right.height) + GAP + FOOT), PAPER)
    pen, x = ImageDraw.Draw(sheet), GAP
    for panel, text, width in zip((left, right), answers, columns, strict=True):
        sheet.paste(panel, (x, GAP))
        pen.text((x, sheet.height - FOOT + 8), text, fill=INK, font=font)
        x += width + GAP
    said = look.fallback or "bright: looked at more than under a general instruction; green: kept; orange: the box"
    pen.text((GAP, sheet.height - FOOT + 30), said, fill=INK, font=ImageFont.load_default(size=12))
    return sheet


def fitted(image: Image.Image) -> Image.Image:
    scale = PANEL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def heated(image: Image.Image, look: SecondLook) -> Image.Image:
    """Return the image under its heat map, grey where the model does not see it."""
    base = fitted(image)
    small = look.map
    known = ~np.isnan(small)
    low, high = (small[known].min(), small[known].max()) if known.any() else (0.0, 1.0)
    values = np.nan_to_num((small - low) / max(high - low, 1e-12)).clip(0, 1)
    at = np.linspace(0, 1, len(VIRIDIS))
    colours = np.stack([np.interp(values, at, VIRIDIS[:, c]) for c in range(3)], -1).astype(np.uint8)
    over = np.asarray(Image.fromarray(colours).resize(base.size, Image.Resampling.BILINEAR), dtype=np.float64)
    seen = np.asarray(Image.fromarray(known).resize(base.size, Image.Resampling.NEAREST))[..., None]
    pixels = np.asarray(base, dtype=np.float64)
    grey = pixels.mean(-1, keepdims=True).repeat(3, -1)
    drawn = np.where(seen, 0.5 * pixels + 0.5 * over, 0.5 * grey + 100)
    kept = np.asarray(Image.fromarray(look.focus.pixels).resize(base.size, Image.Resampling.NEAREST))
    inner = kept.copy()
    inner[1:] &= kept[:-1]
    inner[:-1] &= kept[1:]
    inner[:, 1:] &= kept[:, :-1]
    inner[:, :-1] &= kept[:, 1:]
    drawn[kept & ~inner] = ACCENT
    sheet = Image.fromarray(drawn.clip(0, 255).astype(np.uint8))
    scale = base.width / image.width, base.height / image.height
    left, top, right, bottom = (round(side * scale[i % 2]) for i, side in enumerate(look.box))
    ImageDraw.Draw(sheet).rectangle((left, top, right - 1, bottom - 1), outline=CLICK, width=3)
    return sheet
