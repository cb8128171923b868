"""Write rendered pages as PNG files with a list of targets in ScreenSpot's format (arXiv 2401.10935)."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...atomic import atomic_write
from .catalogue import SPLITS
from .render import Control, Renderer, Screen

KEY = "vlmopt.targets"  # the PNG's text chunk that holds its targets


class Rendering(NamedTuple):
    """One image to be made."""

    page: str
    seed: int
    size: tuple[int, int]

    @property
    def name(self) -> str:
        return f"{self.page}-{self.seed:06d}-{self.size[0]}x{self.size[1]}.png"


def targets(screen: Screen, name: str) -> list[dict[str, Any]]:
    """Return one entry for each target of a screen; boxes are x, y, width, height in pixels, as in ScreenSpot."""
    return [_target(screen, name, control) for control in screen.targets]


def _target(screen: Screen, name: str, control: Control) -> dict[str, Any]:
    wide, high = screen.image.size
    x0, x1 = (min(max(round(x), 0), wide) for x in control.box[::2])  # moved ones may stick out by a pixel or two
    y0, y1 = (min(max(round(y), 0), high) for y in control.box[1::2])
    return {
        "img_filename": name,
        "instruction": f"Click {control.name}.",
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "data_type": control.data_type,
        "data_source": screen.page.partition("-")[0],
        "page": screen.page,
        "split": screen.split,
        "kind": control.kind,
        "theme": screen.theme,
        "font_size": screen.font_size,
    }


def plan(split: str, count: int, sizes: Sequence[tuple[int, int]], seed: int) -> list[Rendering]:
    """Plan `count` images of every size: the split's pages in turn, with a new seed every time round.

    Raises:
        ValueError: an unknown split, no sizes, a size twice, or a count below 1.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: choose from {', '.join(SPLITS)}")
    if count < 1 or not sizes or len(set(sizes)) < len(sizes):
        raise ValueError(f"count must be 1 or more and sizes distinct, got {count!r} and {list(sizes)}")
    pages = SPLITS[split]
    return [Rendering(pages[i % len(pages)], seed + i // len(pages), size) for size in sizes for i in range(count)]


def make(
    out: Path,
    split: str,
    count: int,
    sizes: Sequence[tuple[int, int]] = ((1280, 800),),
    seed: int = 0,
    cell: int = 1,
) -> tuple[Path, list[dict[str, Any]]]:
    """Write the images of a plan and `<split>_web.json`; images that are there already are not made again.

    `cell` is as for `Renderer`.

    Returns:
        The path of the list, and its entries.

    Raises:
        ValueError: as `plan` and `Renderer`; `out` is a file; an image of that name that holds no targets.
    """
    images = plan(split, count, sizes, seed)
    if out.is_file():
        raise ValueError(f"{out} is a file; give a directory")
    out.mkdir(parents=True, exist_ok=True)
    found = list(_make(out, images, cell))
    path = out / f"{split}_web.json"
    with atomic_write(path) as fresh:
        fresh.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in found) + "\n]\n", encoding="utf-8")
    return path, found


def _make(out: Path, renderings: list[Rendering], cell: int) -> Iterator[dict[str, Any]]:
    """Yield the entries of all images. A browser starts at the first image of a size that is missing."""
    with ExitStack() as open_ones:
        renderer: Renderer | None = None
        for rendering in tqdm(renderings, desc="screens", unit="image"):
            path = out / rendering.name
            if path.exists():
                yield from read_targets(path)
                continue
            if renderer is None or renderer.size != rendering.size:
                open_ones.close()
                renderer = open_ones.enter_context(Renderer(rendering.size, cell))
            screen = renderer.render(rendering.page, rendering.seed)
            told = targets(screen, rendering.name)
            with atomic_write(path) as fresh:
                fresh.write_bytes(encode(screen.image, {KEY: json.dumps(told)}))
            yield from told


def read_targets(path: Path) -> list[dict[str, Any]]:
    """Read the targets that an image file carries.

    Raises:
        ValueError: a file without any, or a damaged one.
    """
    try:
        with Image.open(path) as image:
            image.load()
            told: list[dict[str, Any]] = json.loads(image.info[KEY])
        return told
    except (OSError, SyntaxError, KeyError, ValueError) as error:
        raise ValueError(f"{path} was not written by make-screens, or is damaged; delete it: {error}") from error


def encode(image: Image.Image, texts: dict[str, str]) -> bytes:
    """Encode a lossless PNG file without row filters, which only hurt flat screens: a quarter smaller than Pillow's.

    Args:
        image: RGB.
        texts: ASCII texts by key, compressed into the file.
    """
    pixels = np.asarray(image.convert("RGB"))
    height, width, _ = pixels.shape
    lines = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # every row begins with its filter: 0, none
    lines[:, 1:] = pixels.reshape(height, -1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    chunks += [
        (b"zTXt", key.encode() + b"\0\0" + zlib.compress(text.encode("ascii"), 9)) for key, text in texts.items()
    ]
    chunks += [(b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
