"""Draw what every step of decoding makes of four made-up tokens: `python -m tools.decoding_pictures [NAME ...]`.

Bars are probabilities: what the model says, what it is shown beside that, and what comes of both.
"""

from __future__ import annotations

import sys

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tools.method_pictures import OUT, save
from vlmopt.decoding import (
    VCD,
    BlankContrast,
    DeCo,
    Decoding,
    DoLa,
    LocalContrast,
    Plausibility,
    TextContrast,
    YesBias,
)

WORDS = ("cat", "yes", "sofa", "car")
SAID = [2, 1.8, 1.5, -1]
WITHOUT = [2.2, 1, 1.5, -1]
EARLY = [[0, 4, 0, 5], [1, 2, 0, 0]]
# Method, what it is shown, and what that is called.
STEPS: dict[str, tuple[Decoding, list[list[float]], str]] = {
    "text_contrast": (TextContrast(), [WITHOUT], "without the image"),
    "vcd": (VCD(), [WITHOUT], "with a noisy image"),
    "blank_contrast": (BlankContrast(), [WITHOUT], "with a blank image"),
    "local_contrast": (LocalContrast(), [[0.5, 1.5, 0, 0]], "inside the mask"),
    "plausibility": (Plausibility(cutoff=0.7), [], ""),
    "yes_bias": (YesBias(c=0.5, ids=(1,)), [], ""),
    "deco": (DeCo(), EARLY, "early layer"),
    "dola": (DoLa(), EARLY, "early layer"),
}
WIDTH, ROW, BAR, LEFT = 480, 22, 250, 170
INK, BLUE, PALE = (40, 40, 40), (46, 98, 168), (190, 205, 225)


def draw(name: str) -> Image.Image:
    """Draw the bars of one method."""
    method, shown, title = STEPS[name]
    said, beside = torch.tensor([SAID]), torch.tensor([shown]) if shown else None
    last = beside[:, 0] if beside is not None and len(shown) == 1 else beside
    parts: list[tuple[str, Tensor]] = [("the model", said[0])]
    parts += [(title if len(shown) == 1 else f"{title} {i}", torch.tensor(row)) for i, row in enumerate(shown)]
    parts.append((name, method.step(said, last)[0]))
    image = Image.new("RGB", (WIDTH, (len(WORDS) * ROW + 14) * len(parts) + 8), "white")
    pen, font, y = ImageDraw.Draw(image), ImageFont.load_default(14), 8
    for number, (heading, logits) in enumerate(parts):
        pen.text((8, y + ROW), heading, INK, font)
        for word, share in zip(WORDS, logits.float().softmax(-1).tolist(), strict=True):
            pen.text((LEFT - 45, y + 2), word, INK, font)
            colour = BLUE if number == len(parts) - 1 else PALE
            pen.rectangle((LEFT, y + 3, LEFT + round(BAR * share), y + ROW - 4), colour)
            pen.text((LEFT + round(BAR * share) + 6, y + 2), f"{100 * share:.0f} %" if share else "out", INK, font)
            y += ROW
        y += 14
    return image


if __name__ == "__main__":
    for chosen in sys.argv[1:] or STEPS:
        save(draw(chosen), OUT / "decodings" / f"{chosen}.png")
