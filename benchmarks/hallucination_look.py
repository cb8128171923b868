"""The rows of `hallucination.py` with a second look: every question is about the part of the image it looks at."""

from __future__ import annotations

from typing import Any

from PIL import Image

from vlmopt.decoding import LocalContrast
from vlmopt.looking.focus import focus
from vlmopt.looking.frames import frame_mask
from vlmopt.looking.memory import GeneralMaps
from vlmopt.looking.refine import masked
from vlmopt.policy import Policy

SECOND_LOOK, LOCAL = "second look (mask)", "local (second look)"
NEW_TOKENS = 8  # of the first answer, whose attention makes the map


class Masked:
    """Masks images by what a question about them looks at, by the default look."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.loaded = (model, processor)
        self.memory = GeneralMaps(1024)

    def __call__(self, image: Image.Image, question: str) -> Image.Image:
        found = focus(*self.loaded, image, question, max_new_tokens=NEW_TOKENS, memory=self.memory)
        return masked(image, found.pixels)


class Local:
    """Leaves images as they are, and hands the mask of the look at one to a contrast with that part; one at a time."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.loaded, self.memory = (model, processor), GeneralMaps(1024)
        self.policy = Policy(decoding=[LocalContrast(mask=lambda frame: self.inside(frame))])

    def __call__(self, image: Image.Image, question: str) -> Image.Image:
        found = focus(*self.loaded, image, question, max_new_tokens=NEW_TOKENS, memory=self.memory)
        self.inside = frame_mask(self.loaded[1], image, found.pixels)
        return image


def as_it_is(image: Image.Image, question: str) -> Image.Image:
    """Return the image: what all other rows are asked about."""
    return image
