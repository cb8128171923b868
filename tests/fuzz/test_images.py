"""Any file is read as an RGB image or refused with `ValueError`."""

from __future__ import annotations

import functools
import io
import random
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmopt.media import load_image

MODES = ("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "F")
OPENCV = (
    ".avif",
    ".bmp",
    ".exr",
    ".hdr",
    ".jp2",
    ".jpg",
    ".pbm",
    ".pfm",
    ".pgm",
    ".png",
    ".ppm",
    ".ras",
    ".tiff",
    ".webp",
)


def drawn(mode: str) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    return (
        image if mode == "RGB" else image.convert("L").convert(mode) if mode in ("I;16", "F") else image.convert(mode)
    )


@functools.cache
def seeds() -> dict[str, list[bytes]]:
    """Small valid files of every format that Pillow and OpenCV write here, by format."""
    Image.init()
    found: dict[str, list[bytes]] = {}
    for name in sorted(Image.SAVE.keys() & Image.OPEN.keys()):
        for mode in MODES:
            out = io.BytesIO()
            try:
                drawn(mode).save(out, name)
                with Image.open(io.BytesIO(out.getvalue())) as image:
                    image.load()
            except Exception:  # a mode that the format does not know, a codec that is not built in
                continue
            found.setdefault(name, []).append(out.getvalue())
    for ending in OPENCV:
        values: Any = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        values = values.astype(np.float32) if ending in (".exr", ".hdr", ".pfm") else values
        try:
            done, data = cv2.imencode(ending, values[..., 0] if ending == ".pgm" else values)
        except cv2.error:
            continue
        if done:
            found[f"opencv{ending}"] = [data.tobytes()]
    return found


def damaged(files: list[bytes], seed: int) -> bytes:
    """One of the files with some bytes changed, a stretch repeated or its end cut off.

    Drawn by a seed, since a draw of hypothesis for every byte takes four times as long as reading the file.
    """
    draw = random.Random(seed)
    data = bytearray(draw.choice(files))
    for _ in range(draw.randrange(7)):
        header = draw.random() < 0.5
        data[draw.randrange(min(len(data), 64) if header else len(data))] = draw.randrange(256)
    first, last = sorted(draw.randrange(len(data)) for _ in range(2))
    change = draw.choice(["none", "cut", "repeat", "drop"])
    if change == "cut":
        return bytes(data[:last])
    if change == "repeat":
        return bytes(data[:last] + data[first:])
    return bytes(data[:first] + data[last:]) if change == "drop" else bytes(data)


@pytest.mark.parametrize("kind", sorted(seeds()))
def test_read_or_refused(kind, tmp_path_factory):
    file: Path = tmp_path_factory.mktemp("fuzz") / "file"

    @given(st.integers(0, 2**64))
    def read(seed: int) -> None:
        file.write_bytes(damaged(seeds()[kind], seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = load_image(file).image
            except ValueError as error:
                refusal = str(error)
            else:
                refusal = ""
        if refusal:
            assert str(file) in refusal
        else:
            assert image.mode == "RGB"
            assert min(image.size) > 0

    read()


def test_undamaged_files_are_read(tmp_path):
    for kind, files in seeds().items():
        for data in files:
            (tmp_path / "file").write_bytes(data)
            if not kind.startswith("opencv"):
                assert load_image(tmp_path / "file").image.mode == "RGB"
