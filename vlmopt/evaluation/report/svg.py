"""A drawing as an SVG that stands alone: in the colours of paper, its titles to hover for."""

from __future__ import annotations

from markupsafe import Markup

from .draw import DASH, Scene
from .palette import LIGHT
from .templates import render


def svg(scene: Scene) -> str:
    """Write a scene as an SVG file."""
    inks = "".join(f".f-{name}{{fill:{ink}}}.s-{name}{{stroke:{ink}}}" for name, ink in LIGHT.items())
    marks = (
        "text{font-family:sans-serif}.bold{font-weight:600}.line{fill:none}.bar{stroke-width:1.6;opacity:.8}"
        ".level{opacity:.3}.faint{opacity:.07}.reach{fill:#0000}.hollow{stroke-width:2}"
        f".edge{{stroke:{LIGHT['paper']};stroke-width:1.2}}"
    )
    return render("drawing.svg", scene=scene, style=Markup(inks + marks), dash=DASH)
