"""Images and videos that tests write."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def noise(size: tuple[int, int] = (60, 40), seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def write_video(
    path: Path, frames: int = 37, size: tuple[int, int] = (160, 112), fps: float = 10.0, fourcc: str = "mp4v"
) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), fps, size)
    for i in range(frames):
        frame = np.full((size[1], size[0], 3), (i * 5 % 255, 80, max(200 - i, 0)), np.uint8)
        cv2.circle(frame, (20 + 3 * i, size[1] // 2), 15, (0, 255, i), -1)
        writer.write(frame)
    writer.release()
    return path
