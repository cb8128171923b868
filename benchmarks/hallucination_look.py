"""The row "second look (mask)" of `hallucination.py`: every question is about the part of the image it looks at."""

from __future__ import annotations

from typing import Any

from PIL import Image

from vlmopt.looking.focus import focus
from vlmopt.looking.memory import GeneralMaps
from vlmopt.looking.refine import masked

SECOND_LOOK = "second look (mask)"
NEW_TOKENS = 8  # of the first answer, whose attention makes the map


class Masked:
    """Masks images by what a question about them looks at, by the default look."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.loaded = (model, processor)
        self.memory = GeneralMaps(1024)

    def __call__(self, image: Image.Image, question: str) -> Image.Image:
        found = focus(*self.loaded, image, question, max_new_tokens=NEW_TOKENS, memory=self.memory)
        return masked(image, found.pixels)


def as_it_is(image: Image.Image, question: str) -> Image.Image:
    """Return the image: what all other rows are asked about."""
    return image
