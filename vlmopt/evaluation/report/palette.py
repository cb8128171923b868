"""Colours of the plots, for pages in a light and a dark theme and for PNG files."""

from __future__ import annotations

LIGHT = {
    "paper": "#ffffff", "ink": "#1b2230", "mute": "#5a6473", "grid": "#e4e8ee", "front": "#0b7a60", "area": "#0b7a60",
    "vision": "#3b6fd4", "scoring": "#d9822b", "prefill": "#7a5bc7", "decode": "#2a9d8f", "other": "#9aa4b2",
    "p0": "#1b2230", "p1": "#1f6fc4", "p2": "#cc4e00", "p3": "#0a7d59", "p4": "#b0479a", "p5": "#8f6a00",
    "p6": "#5d4bd0", "p7": "#00818a", "p8": "#b3343d",
}  # fmt: skip
DARK = {
    "paper": "#161b24", "ink": "#e9edf3", "mute": "#a5b0c0", "grid": "#2a3240", "front": "#45d0a8", "area": "#45d0a8",
    "vision": "#6f9bf0", "scoring": "#f0a35a", "prefill": "#a68cf0", "decode": "#4fc7b8", "other": "#7d8796",
    "p0": "#e9edf3", "p1": "#62aef5", "p2": "#ff8f52", "p3": "#3fce9c", "p4": "#ea8dd4", "p5": "#e2bd4a",
    "p6": "#a99bff", "p7": "#4fd3dc", "p8": "#ff8890",
}  # fmt: skip
POLICIES = 9  # colours of policies; the shape goes on changing when they start again
SHAPES = ("circle", "square", "up", "diamond", "down")


def look(style: int) -> tuple[str, str]:
    """Return ink and shape of the policy of that number; the ink of dense, number 0, is its own."""
    if style == 0:
        return "p0", SHAPES[0]
    return f"p{1 + (style - 1) % (POLICIES - 1)}", SHAPES[style % len(SHAPES)]


def css(colours: dict[str, str]) -> str:
    """Write the colours as custom properties of a style sheet."""
    return "".join(f"--{name}:{value};" for name, value in colours.items())
