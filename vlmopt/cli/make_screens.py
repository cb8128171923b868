"""`vlmopt make-screens`: render web pages in a browser, with the boxes of their controls in ScreenSpot's format."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..choices import SIZE


def execute(options: argparse.Namespace) -> None:
    """Render the pages; keep images that an interrupted run left."""
    from ..synthetic.web.screenspot import make

    if options.seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {options.seed}")
    if options.cell < 1:
        raise ValueError(f"--cell must be 1 or more pixels, got {options.cell}")
    sizes = [size(s) for s in options.size]
    path, targets = make(Path(options.out), options.split, options.count, sizes, options.seed, options.cell)
    icons = sum(target["data_type"] == "icon" for target in targets)
    images = len({target["img_filename"] for target in targets})
    print(f"wrote {path}: {images} images, {len(targets)} targets ({len(targets) - icons} text, {icons} icon)")
    print(f"measure with: vlmopt eval --data {path} --boxes xywh")


def size(text: str) -> tuple[int, int]:
    """Read (width, height) from "1280x800"."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError(f"--size {text!r} must be WIDTHxHEIGHT in pixels, e.g. {SIZE}")
    return int(width), int(height)
