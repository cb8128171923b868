"""What a page looks like: colours, corners, fonts and density, as CSS variables and classes of the body."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Backgrounds: page, panel, second panel, text, faint text, lines.
LIGHT = (
    ("#f5f6f8", "#ffffff", "#eef0f4", "#1d2330", "#5d6678", "#d9dee7"),
    ("#ffffff", "#ffffff", "#f4f4f4", "#222222", "#666666", "#dddddd"),
    ("#faf7f2", "#fffdf9", "#f2ece2", "#33291f", "#74685a", "#e0d6c6"),
    ("#eef4fa", "#ffffff", "#e2ecf6", "#10253c", "#52677d", "#cbd9e8"),
    ("#f3f6f1", "#fcfefb", "#e5ece1", "#1f2c20", "#5b6b5c", "#cfdacb"),
    ("#e9e9ec", "#f8f8fa", "#dedee3", "#1a1a1f", "#5a5a66", "#c4c4cc"),
)
DARK = (
    ("#14171d", "#1d222b", "#262d38", "#e8ebf0", "#9aa5b5", "#343d4b"),
    ("#0f0f10", "#1a1a1c", "#262629", "#ededed", "#a0a0a0", "#37373b"),
    ("#0d1b2a", "#15273b", "#1d344d", "#e3edf7", "#93a9bf", "#2b4763"),
    ("#1e1b26", "#292534", "#353043", "#ece8f5", "#a79fb8", "#443e55"),
    ("#20241f", "#2a302a", "#353d34", "#e9eee6", "#a4b0a0", "#434c41"),
)
# Accent on light, on dark, and the text on either.
ACCENTS = (
    ("#1f5fd0", "#6ea2ff", "#ffffff", "#0c1a33"),
    ("#0b7a5b", "#45c79d", "#ffffff", "#04231a"),
    ("#7a3fc4", "#b792f2", "#ffffff", "#1d0d33"),
    ("#c03a2b", "#ff8f80", "#ffffff", "#330b06"),
    ("#b35900", "#ffb057", "#ffffff", "#331b00"),
    ("#a82468", "#f58bbb", "#ffffff", "#330a1f"),
    ("#0f6c86", "#5cc8e4", "#ffffff", "#04212a"),
    ("#333a45", "#c7d0dd", "#ffffff", "#14181f"),
)
STATES = {"light": ("#1c7c3c", "#a86400", "#bf2a2a"), "dark": ("#63cf8a", "#f2b84b", "#ff7d7d")}
FONTS = (
    "'DejaVu Sans', Verdana, sans-serif",
    "'DejaVu Sans Condensed', 'DejaVu Sans', sans-serif",
    "'DejaVu Serif', Georgia, serif",
    "'DejaVu Serif Condensed', 'DejaVu Serif', serif",
    "'DejaVu Sans Mono', monospace",
)
FONT_WEIGHTS = (40, 30, 10, 12, 6)
FONT_SIZES = range(12, 19)  # pixels
SIZE_WEIGHTS = (12, 20, 24, 18, 14, 7, 5)
RADII = (0, 2, 4, 6, 8, 12)  # pixels
BUTTONS = ("filled", "soft", "outline", "raised")
TABS = ("underline", "pill", "boxed")
FIELDS = ("outlined", "shaded", "underlined")


@dataclass(frozen=True)
class Look:
    """`style` are the declarations of `:root`, `classes` those of the body; `icons`: whether buttons carry them."""

    theme: str
    font_size: int
    style: str
    classes: str
    icons: bool


def look(rng: random.Random, theme: str | None = None) -> Look:
    """Draw a look; `theme` "light" or "dark" where a page has only one."""
    theme = theme or ("dark" if rng.random() < 0.4 else "light")
    dark = theme == "dark"
    colours = rng.choice(DARK if dark else LIGHT)
    accent = rng.choice(ACCENTS)
    size = rng.choices(FONT_SIZES, SIZE_WEIGHTS)[0]
    radius = rng.choice(RADII)
    roomy = 1.0 if size > 15 else 1.2
    density = rng.choice((0.75, 0.9, 1.0, roomy)) * (0.85 if size > 16 else 1)
    shadow = "0 1px 3px rgb(0 0 0 / .18)" if rng.random() < 0.5 else "none"
    values = dict(zip(("bg", "panel", "deep", "ink", "faint", "line"), colours, strict=True))
    values |= {"accent": accent[dark], "on": accent[2 + dark], "radius": f"{radius}px", "shadow": shadow}
    values |= dict(zip(("ok", "warn", "bad"), STATES[theme], strict=True))
    values |= {"u": f"{size * density:.2f}px", "font": rng.choices(FONTS, FONT_WEIGHTS)[0], "size": f"{size}px"}
    classes = (theme, *(f"{kind}-{rng.choice(of)}" for kind, of in (("b", BUTTONS), ("t", TABS), ("f", FIELDS))))
    style = ";".join(f"--{name}:{value}" for name, value in values.items())
    style += f";color-scheme:{theme}"
    return Look(theme, size, style, " ".join(classes), rng.random() < 0.45)
