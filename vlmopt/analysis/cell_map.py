"""Draw a number per visual token over the images: cells coloured by value, the others as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..overlay import BLANK, GAP, INK, PANEL_WIDTH, PAPER, Map

# Anchors of viridis, dark to bright, equally spaced.
VIRIDIS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=np.float64)
BAR, FOOT = 160, 44  # pixels: length of the colour bar, height of the legend
DIM, VEIL = 0.35, 150.0  # share of the image that shows through where no value is; grey behind it


def cell_map(
    images: Sequence[Image.Image], maps: Sequence[Map], values: Sequence[Tensor], *, label: str, columns: int = 4
) -> Image.Image:
    """Draw values >= 0, linearly from 0 (dark) to the largest (bright).

    Args:
        images: as for `overlay`: the images in order, and of a video one frame per temporal cell.
        maps: `report.maps(sample)` of the sample, for the grids. values: fp32 [n] for each; NaN: the image, dimmed.
        label: what the numbers are.

    Raises:
        ValueError: not one tensor of n values per map, or a map without a grid.
    """
    sizes = [len(m.kept) for m in maps]
    if not maps or [len(v) for v in values] != sizes:
        raise ValueError(f"values must be {sizes} numbers, got {[len(v) for v in values]}")
    grids = [m.grid for m in maps if m.grid is not None]
    if len(grids) < len(maps):
        raise ValueError("the tokens of this model lie on no known grid, so there is nothing to draw them on")
    frames = [(m.coords, g, v, t) for m, g, v in zip(maps, grids, values, strict=True) for t in range(g[0])]
    own: Sequence[Image.Image | None] = images if len(images) == len(frames) else [None] * len(frames)
    known = torch.cat(list(values))
    top = max(float(known[~known.isnan()].max()), 1e-12) if bool((~known.isnan()).any()) else 1.0
    width = PANEL_WIDTH if len(frames) == 1 else PANEL_WIDTH // 2
    panels = [panel(image, *frame, top, width) for image, frame in zip(own, frames, strict=True)]
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    wide = max(sum(p.width + GAP for p in row) for row in rows) + GAP
    sheet = Image.new("RGB", (wide, sum(max(p.height for p in row) + GAP for row in rows) + GAP + FOOT), PAPER)
    y = GAP
    for row in rows:
        for place, drawn in enumerate(row):
            sheet.paste(drawn, (GAP + sum(p.width + GAP for p in row[:place]), y))
        y += max(p.height for p in row) + GAP
    legend(sheet, y, label, top)
    return sheet


def panel(
    image: Image.Image | None,
    coords: Tensor,
    grid: tuple[int, int, int],
    values: Tensor,
    t: int,
    top: float,
    width: int,
) -> Image.Image:
    """Draw one time step of one grid."""
    _, h, w = grid
    cell = max(4, round(width / w))
    tall = max(4, round(cell * w * image.height / image.width / h)) if image else cell
    size = (cell * w, tall * h)
    base = image.convert("RGB").resize(size, Image.Resampling.LANCZOS) if image else Image.new("RGB", size, BLANK)
    here = (coords[:, 0] == t) & (coords[:, 1:] >= 0).all(1)
    cells = torch.full((h, w), float("nan"))
    cells[coords[here, 1], coords[here, 2]] = values[here].float()
    shown = cells.numpy().repeat(tall, 0).repeat(cell, 1)
    pixels = np.asarray(base).astype(np.float64)
    grey = DIM * (pixels @ np.array((0.299, 0.587, 0.114)))[..., None] + (1 - DIM) * VEIL
    colours = 0.3 * pixels + 0.7 * coloured(np.nan_to_num(shown) / top)
    drawn = Image.fromarray(np.where(np.isnan(shown)[..., None], grey, colours).clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    for y, x in (~cells.isnan()).nonzero().tolist():
        pen.rectangle((x * cell, y * tall, (x + 1) * cell - 1, (y + 1) * tall - 1), outline=INK)
    return drawn


def coloured(values: np.ndarray) -> np.ndarray:
    """Map values [...] in 0-1 to colours [..., 3] in 0-255."""
    at = np.linspace(0, 1, len(VIRIDIS))
    return np.stack([np.interp(values, at, VIRIDIS[:, c]) for c in range(3)], axis=-1)


def legend(sheet: Image.Image, y: int, label: str, top: float) -> None:
    draw, small = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    draw.text((GAP, y), label, fill=INK, font=ImageFont.load_default(size=15))
    bar = coloured(np.linspace(0, 1, BAR))[None].repeat(10, 0).astype(np.uint8)
    draw.text((GAP, y + 22), "0", fill=INK, font=small)
    sheet.paste(Image.fromarray(bar), (GAP + 14, y + 25))
    draw.text((GAP + 20 + BAR, y + 22), f"{top:.3g}", fill=INK, font=small)
