"""Draw a selection: kept cells outlined, dropped ones dimmed, markers dotted, merged tokens with a square."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .ring import ring

ACCENT = (0, 200, 150)
MARKER = (255, 176, 0)
CLICK = (204, 78, 0)
PAPER = (250, 250, 248)
INK = (40, 44, 52)
BLANK = (214, 216, 220)  # a cell without an image
VEIL = np.array((26.0, 29.0, 38.0))
PANEL_WIDTH = 672  # pixels one panel aims at
GAP = 12
# Anchor colours of the heat scale, dark to bright, equally spaced in score.
HEAT = np.array([(13, 8, 135), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33)], dtype=np.float64)


Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


class Map(Protocol):
    """What a report tells of one image, tile or video (`Report.maps`)."""

    @property
    def kind(self) -> str: ...
    @property
    def grid(self) -> tuple[int, int, int] | None: ...  # (t, h, w) after merging
    @property
    def coords(self) -> Tensor: ...  # Long[n, 3] (t, y, x); -1 where unknown
    @property
    def kept(self) -> Tensor: ...  # Bool[n]
    @property
    def markers(self) -> Tensor: ...  # Bool[n]
    @property
    def merged(self) -> Tensor: ...  # Bool[n]
    @property
    def scores(self) -> Tensor | None: ...  # fp32 [n]


def overlay(
    images: Image.Image | Sequence[Image.Image],
    maps: Sequence[Map],
    *,
    heat: bool = False,
    title: str = "",
    columns: int = 4,
    clicks: Sequence[tuple[float, float]] = (),
) -> Image.Image:
    """Draw what was kept.

    Args:
        images: the images of the prompt in order, and of each video one frame per temporal cell. A grid without an
            image of its own (one of several tiles, say) is drawn on plain paper, an unknown grid as a strip.
        maps: `report.maps(sample)` of the sample.
        heat: colour the cells by their score instead of dimming the dropped ones, where there are scores.
        title: text after the counts in the legend.
        columns: panels per row, when there are several.
        clicks: points (x, y) in fractions of the first image, ringed there.

    Returns:
        An RGB image: one panel per image, tile or frame, and a legend line below.
    """
    if not maps:
        raise ValueError("nothing to draw: the sample has no visual tokens")
    given = list(images) if isinstance(images, Sequence) else [images]
    width = PANEL_WIDTH if sum(_frames(m) for m in maps) == 1 else PANEL_WIDTH // 2
    panels: list[Image.Image] = []
    # A single tile beside the overview covers the whole image too; several tiles have no images of their own.
    for tiles in (False, True):
        group = [m for m in maps if (m.kind == "tile") == tiles]
        known = all(m.grid is not None for m in group)
        matched = known and sum(_frames(m) for m in group) == len(given)
        own = iter(given if matched else ())
        if group and not matched and len(given) == 1:
            panels.append(_fit(given[0], width))
        panels += [_panel(next(own, None), part, t, heat, width) for part in group for t in range(_frames(part))]
    for x, y in clicks:
        ring(panels[0], x * panels[0].width, y * panels[0].height, CLICK, 17)
    return _sheet(panels, _Legend.of(maps, heat, title + (" · click ringed" if clicks else "")), columns)


def _frames(part: Map) -> int:
    return part.grid[0] if part.grid is not None else 1


def _fit(image: Image.Image, width: int) -> Image.Image:
    height = max(1, round(image.height * width / image.width))
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _panel(image: Image.Image | None, part: Map, t: int, heat: bool, width: int) -> Image.Image:
    """Draw one time step of one grid; tokens without coordinates are left out here and counted in the legend."""
    if part.grid is None:
        return _strip(part, width)
    _, h, w = part.grid
    here = (part.coords[:, 0] == t) & (part.coords[:, 1:] >= 0).all(1)
    y, x = part.coords[here, 1], part.coords[here, 2]
    kept, marked = torch.zeros(h, w, dtype=torch.bool), torch.zeros(h, w, dtype=torch.long)
    kept[y, x] = part.kept[here]
    marked[y, x] = _marks(part)[here]
    scores = None
    if heat and part.scores is not None:
        scores = torch.full((h, w), float("nan"))
        scores[y, x] = _ranks(part.scores)[here]
    cell = max(4, round(width / w))  # whole pixels, so that outlines are even
    tall = max(4, round(cell * w * image.height / image.width / h)) if image else cell
    size = (cell * w, tall * h)
    base = image.convert("RGB").resize(size, Image.Resampling.LANCZOS) if image else Image.new("RGB", size, BLANK)
    return _paint(base, kept.numpy(), marked.numpy(), None if scores is None else scores.numpy())


def _strip(part: Map, width: int) -> Image.Image:
    """Draw tokens in sequence order, for a grid nobody knows."""
    n = len(part.kept)
    across = min(n, 32)
    rows = -(-n // across)
    cell = max(4, width // across)
    base = Image.new("RGB", (across * cell, rows * cell), BLANK)
    fill = rows * across - n
    kept, marked = (F.pad(flags, (0, fill)).view(rows, across).numpy() for flags in (part.kept, _marks(part)))
    painted = _paint(base, kept, marked, None)
    if fill:
        unused = ((across - fill) * cell, (rows - 1) * cell, across * cell, rows * cell)
        ImageDraw.Draw(painted).rectangle(unused, fill=PAPER)
    return painted


def _marks(part: Map) -> Tensor:
    """Return Long[n]: 1 for a marker, 2 for a merged token that stayed."""
    return part.markers.long() + 2 * (part.merged & part.kept).long()


def _paint(base: Image.Image, kept: np.ndarray, marked: np.ndarray, scores: np.ndarray | None) -> Image.Image:
    """Paint cells; kept: bool [h, w]; marked: int [h, w] of `_marks`; scores: [h, w] in 0-1, NaN where none is."""
    h, w = kept.shape
    ch, cw = base.height // h, base.width // w
    pixels = np.asarray(base).astype(np.float64)
    shown = kept.repeat(ch, 0).repeat(cw, 1)
    if scores is not None:
        known = ~np.isnan(scores).repeat(ch, 0).repeat(cw, 1)
        colours = _colour(np.nan_to_num(scores)).repeat(ch, 0).repeat(cw, 1)
        pixels = np.where(known[..., None], 0.42 * pixels + 0.58 * colours, pixels)
    else:
        grey = pixels @ np.array((0.299, 0.587, 0.114))
        dim = 0.36 * grey[..., None] + 0.64 * VEIL
        yy, xx = np.mgrid[: base.height, : base.width]
        pitch = max(6, min(ch, cw) // 2)
        hatch = ((xx + yy) % pitch) < max(1, pitch // 8)
        dim = np.where(hatch[..., None], dim + 26, dim)
        pixels = np.where(shown[..., None], pixels, dim)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    line = 2 if min(ch, cw) >= 20 else 1
    for y, x in zip(*np.nonzero(kept), strict=True):
        box = (x * cw, y * ch, (x + 1) * cw - 1, (y + 1) * ch - 1)
        draw.rectangle(box, outline=ACCENT, width=line)
    r = max(2, min(ch, cw) // 6)
    for y, x in zip(*np.nonzero(marked), strict=True):
        cx, cy = x * cw + cw // 2, y * ch + ch // 2
        shape = draw.ellipse if marked[y, x] == 1 else draw.rectangle
        shape((cx - r, cy - r, cx + r, cy + r), fill=MARKER, outline=INK)
    return image


def _ranks(scores: Tensor) -> Tensor:
    """Turn scores into ranks in 0-1 (NaN stays NaN), so that one outlier does not flatten the rest."""
    known = ~scores.isnan()
    ranks = torch.full_like(scores, float("nan"))
    values = scores[known]
    ranks[known] = torch.searchsorted(values.sort().values, values).float() / max(len(values) - 1, 1)
    return ranks


def _colour(values: np.ndarray) -> np.ndarray:
    """Map values [...] in 0-1 to colours [..., 3] in 0-255."""
    at = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(values, at, HEAT[:, c]) for c in range(3)], axis=-1)


class _Legend:
    def __init__(self, text: str, markers: int, merged: int, heat: bool) -> None:
        self.text, self.markers, self.merged, self.heat = text, markers, merged, heat

    @classmethod
    def of(cls, maps: Sequence[Map], heat: bool, title: str) -> _Legend:
        kept, total = sum(int(m.kept.sum()) for m in maps), sum(len(m.kept) for m in maps)
        text = f"kept {kept} of {total} tokens ({100 * kept / total:.0f} %)" + (f" · {title}" if title else "")
        markers, merged = (sum(int((_marks(m) == kind).sum()) for m in maps) for kind in (1, 2))
        return cls(text, markers, merged, heat and any(m.scores is not None for m in maps))

    def draw(self, sheet: Image.Image, top: int) -> None:
        draw, x, y = ImageDraw.Draw(sheet), GAP, top
        font = ImageFont.load_default(size=15)
        draw.text((x, y), self.text, fill=INK, font=font)
        y += 24
        small = ImageFont.load_default(size=12)
        draw.rectangle((x, y + 1, x + 13, y + 14), outline=ACCENT, width=2)
        x = _label(draw, x + 19, y, "kept", small)
        if self.heat:
            bar = _colour(np.linspace(0, 1, 80))[None].repeat(10, 0).astype(np.uint8)
            x = _label(draw, x, y, "score: low", small) - 8
            sheet.paste(Image.fromarray(bar), (x, y + 3))
            x = _label(draw, x + 86, y, "high (rank)", small)
        else:
            nothing = np.zeros((1, 1), dtype=bool)
            sheet.paste(_paint(Image.new("RGB", (14, 14), (140, 140, 140)), nothing, nothing, None), (x, y + 1))
            x = _label(draw, x + 19, y, "dropped", small)
        if self.markers:
            draw.ellipse((x + 2, y + 3, x + 12, y + 13), fill=MARKER, outline=INK)
            x = _label(draw, x + 19, y, f"marker ({self.markers})", small)
        if self.merged:
            draw.rectangle((x + 2, y + 3, x + 12, y + 13), fill=MARKER, outline=INK)
            _label(draw, x + 19, y, f"merged ({self.merged})", small)


def _label(draw: ImageDraw.ImageDraw, x: int, y: int, text: str, font: Font) -> int:
    draw.text((x, y), text, fill=INK, font=font)
    return x + round(draw.textlength(text, font=font)) + 18


def _sheet(panels: Sequence[Image.Image], legend: _Legend, columns: int) -> Image.Image:
    """Lay out panels in rows, top-aligned, the legend below."""
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    width = max(sum(p.width for p in row) + GAP * (len(row) + 1) for row in rows)
    font = ImageFont.load_default(size=15)
    width = max(width, round(font.getlength(legend.text)) + 2 * GAP)
    height = sum(max(p.height for p in row) + GAP for row in rows) + GAP
    sheet = Image.new("RGB", (width, height + 48), PAPER)
    y = GAP
    for row in rows:
        x = GAP
        for panel in row:
            sheet.paste(panel, (x, y))
            x += panel.width + GAP
        y += max(p.height for p in row) + GAP
    legend.draw(sheet, y)
    return sheet
