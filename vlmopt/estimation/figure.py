"""The stages to the first token as stacked bars, dense and policies, one panel per device."""

from __future__ import annotations

from ..evaluation.report.draw import Box, Scene, Text, text_width
from ..evaluation.report.svg import svg
from .result import Estimate, Prediction

STAGES = (
    ("vision_ms", "vision tower", "vision"),
    ("scoring_ms", "choosing", "scoring"),
    ("prefill_ms", "prefill", "prefill"),
)
WIDTH, ROW, BAR, TOP, HEAD, FOOT = 860, 26, 17, 92, 40, 14
LEFT, FIGURES = 16, 280  # the margin, and what the figures behind the bars need
NAME = 40  # letters of a policy's name


def draw(found: Estimate) -> str:
    """Draw an SVG of every device's panel; bars of one panel share a scale, panels do not."""
    panels = list(found.by_device())
    left = max(text_width(named(one), 12) for one in found.predictions) + LEFT + 8
    scene = Scene(
        WIDTH,
        TOP + sum(HEAD + ROW * len(rows) for _, rows in panels) + FOOT,
        f"Predicted time to the first token: {found.model}",
        "; ".join(f"{one.title}, {one.policy}: {one.ttft_ms:.1f} ms" for one in found.predictions),
    )
    scene.marks += [Text(x=LEFT, y=24, text=scene.title, ink="ink", size=15, bold=True)]
    scene.marks += [Text(x=LEFT, y=44, text=prompt(found))]
    x = float(LEFT)
    for _, name, ink in STAGES:
        scene.marks += [Box(x=x, y=58, width=11, height=11, ink=ink), Text(x=x + 17, y=68, text=name, ink="ink")]
        x += 34 + text_width(name, 12)
    y = float(TOP)
    for dense, rows in panels:
        title = f"{dense.title}, {dense.dtype}"
        scene.marks += [Text(x=LEFT, y=y + 14, text=title, ink="ink", bold=True)]
        y += HEAD - 14
        scale = (WIDTH - left - FIGURES) / max(one.ttft_ms for one in rows)
        for one in rows:
            scene.marks += bar(one, dense, left, y, scale)
            y += ROW
        y += 14
    return svg(scene)


def prompt(found: Estimate) -> str:
    shapes = ", ".join(f"{w}x{h}" for h, w in found.images[:3]) + (" ..." if len(found.images) > 3 else "")
    return f"{shapes}: {found.visual_tokens} visual and {found.text_tokens} other tokens, batch {found.batch}"


def named(one: Prediction) -> str:
    return one.policy if len(one.policy) <= NAME else one.policy[: NAME - 1] + "…"


def bar(one: Prediction, dense: Prediction, left: float, y: float, scale: float) -> list[Box | Text]:
    """Draw one policy: its stages side by side, and the figures behind them."""
    base, x = y + BAR - 4, left
    marks: list[Box | Text] = [Text(x=left - 8, y=base, text=named(one), ink="ink", anchor="end")]
    for field, stage, ink in STAGES:
        width = getattr(one, field) * scale
        if width > 0:
            tip = f"{stage}: {getattr(one, field):.1f} ms"
            marks.append(Box(x=x, y=y, width=width, height=BAR, ink=ink, tip=tip))
            x += width
    said = f"{one.ttft_ms:.1f} ms" + ("" if one is dense else f" ({dense.ttft_ms / one.ttft_ms:.2f} x)")
    marks.append(Text(x=x + 8, y=base, text=f"{said}, then {one.token_ms:.1f} ms a token", ink="ink"))
    return marks
