"""Remember what a general instruction looks at: it depends on the image and the model alone, not on the question."""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from typing import Any

from PIL import Image
from torch import nn

from .hearing import Heard


class GeneralMaps:
    """The maps of the general instruction for the images that were looked at last; least recently used leave first.

    Whoever looks owns one and hands it in. Clear it when the model's weights change.
    """

    def __init__(self, most: int = 32) -> None:
        """Raise `ValueError` for less than one image."""
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ValueError(f"most must be a whole number of images >= 1, got {most!r}")
        self.most = most
        self.held: OrderedDict[tuple[Any, ...], Heard] = OrderedDict()
        self.hits = self.misses = 0

    def key(self, model: nn.Module, processor: Any, image: Image.Image, *settings: Any) -> tuple[Any, ...]:
        """Return what maps depend on: the model object, its image processor, the image's pixels, and settings."""
        pixels = hashlib.sha256(image.tobytes())
        pixels.update(repr((image.mode, image.size)).encode())
        return weakref.ref(model), processor.image_processor.to_json_string(), pixels.digest(), *settings

    def get(self, key: tuple[Any, ...]) -> Heard | None:
        """Return what is held, None if nothing is."""
        found = self.held.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self.held.move_to_end(key)
        return found

    def put(self, key: tuple[Any, ...], heard: Heard) -> None:
        """Hold maps; the ones that were used longest ago leave."""
        self.held[key] = heard
        self.held.move_to_end(key)
        while len(self.held) > self.most:
            self.held.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self.held.clear()
