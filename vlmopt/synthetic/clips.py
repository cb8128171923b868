"""Short generated clips: a disc that crosses a still scene, so that what changes between frames is known."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..media import optional_module
from .scenes import scene
from .words import COLOURS

FPS = 8
RADIUS = 18  # pixels of the disc


def frames(seed: int = 3, *, count: int = 24, size: tuple[int, int] = (224, 224)) -> list[Image.Image]:
    """Draw `count` frames of one scene; a red disc moves across them from left to right, a third of the way down.

    Raises:
        ValueError: fewer than 2 frames, or what `worlds.scene` refuses.
    """
    if count < 2:
        raise ValueError(f"a clip has at least 2 frames, got count={count}")
    still = scene(seed, size).image.convert("RGB")
    out = []
    for number in range(count):
        frame = still.copy()
        x, y = RADIUS + (size[0] - 2 * RADIUS) * number / (count - 1), size[1] / 3
        ImageDraw.Draw(frame).ellipse((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), fill=COLOURS["red"])
        out.append(frame)
    return out


def write_clip(path: Path, seed: int = 3, *, count: int = 24, size: tuple[int, int] = (224, 224)) -> Path:
    """Write `frames` as an mp4 (H.264) that browsers play; return the path.

    Raises:
        ValueError: PyAV is missing, which comes with qwen-vl-utils.
    """
    av, why = optional_module("av")
    if av is None:
        raise ValueError(f"clips are written with PyAV, which cannot be used here ({why}); pip install av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"crf": "18"}
        for frame in frames(seed, count=count, size=size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path
