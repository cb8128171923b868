"""Real screens: web pages with made-up contents, rendered in a browser, with the truth read from the DOM."""

from .catalogue import HELD_OUT, PAGES, SPLITS, TRAIN, split_of
from .fill import Filled, fill
from .render import Control, Renderer, Screen, Text, find_browser
from .windows import candidates, window

__all__ = [
    "HELD_OUT", "PAGES", "SPLITS", "TRAIN", "Control", "Filled", "Renderer", "Screen", "Text", "candidates", "fill",
    "find_browser", "split_of", "window",
]  # fmt: skip
