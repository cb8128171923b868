"""The stages to the first token as stacked bars, dense and policies, one panel per device: SVG, by hand."""

from __future__ import annotations

from html import escape

from ..evaluation.report.palette import LIGHT
from .result import Estimate, Prediction

STAGES = (
    ("vision_ms", "vision tower", "vision"),
    ("scoring_ms", "choosing", "scoring"),
    ("prefill_ms", "prefill", "prefill"),
)
WIDTH, ROW, BAR, TOP, HEAD, FOOT = 860, 26, 17, 92, 40, 14  # pixels
LETTER = 6.7  # of a 12 pixel letter, about


def draw(found: Estimate) -> str:
    """Draw an SVG of every device's panel; bars of one panel share a scale, panels do not."""
    panels = list(found.by_device())
    label = min(max(len(one.policy) for one in found.predictions), 40) * LETTER + 24
    height = TOP + sum(HEAD + ROW * len(rows) for _, rows in panels) + FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{LIGHT["ink"]}">',
        f'<rect width="{WIDTH}" height="{height}" fill="{LIGHT["paper"]}"/>',
        written(16, 24, f"Predicted time to the first token: {found.model}", 'font-size="15" font-weight="600"'),
        written(16, 44, prompt(found), f'fill="{LIGHT["mute"]}"'),
        *legend(),
    ]
    y = float(TOP)
    for dense, rows in panels:
        parts.append(written(16, y + 14, f"{dense.title}, {dense.dtype}", 'font-weight="600"'))
        y += HEAD - 14
        scale = (WIDTH - label - 280) / max(one.ttft_ms for one in rows)
        for one in rows:
            parts += bar(one, dense, label, y, scale)
            y += ROW
        y += 14
    return "\n".join([*parts, "</svg>"]) + "\n"


def prompt(found: Estimate) -> str:
    shapes = ", ".join(f"{w}x{h}" for h, w in found.images[:3]) + (" ..." if len(found.images) > 3 else "")
    return f"{shapes}: {found.visual_tokens} visual and {found.text_tokens} other tokens, batch {found.batch}"


def legend() -> list[str]:
    parts, x = [], 16.0
    for _, name, colour in STAGES:
        parts += [f'<rect x="{x}" y="58" width="11" height="11" fill="{LIGHT[colour]}"/>', written(x + 17, 68, name)]
        x += 34 + LETTER * len(name)
    return parts


def bar(one: Prediction, dense: Prediction, left: float, y: float, scale: float) -> list[str]:
    """Draw one policy: its stages side by side, and the figures behind them."""
    name = one.policy if len(one.policy) <= 40 else one.policy[:39] + "…"
    parts, x = [written(left - 8, y + BAR - 4, name, 'text-anchor="end"')], left
    for field, stage, colour in STAGES:
        width = getattr(one, field) * scale
        if width > 0:
            title = f"<title>{stage}: {getattr(one, field):.1f} ms</title>"
            place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR}"'
            parts.append(f'<rect {place} fill="{LIGHT[colour]}">{title}</rect>')
            x += width
    said = f"{one.ttft_ms:.1f} ms" + ("" if one is dense else f" ({dense.ttft_ms / one.ttft_ms:.2f} x)")
    parts.append(written(x + 8, y + BAR - 4, f"{said}, then {one.token_ms:.1f} ms a token"))
    return parts


def written(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
