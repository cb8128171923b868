"""`vlmopt make-screens`: render web pages in a browser, with the boxes of their controls in ScreenSpot's format."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..synthetic.web.catalogue import SPLITS

SIZE = "1280x800"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="for the PNG files and <split>_web.json")
    parser.add_argument("--split", choices=SPLITS, default="held-out", help="which pages (default held-out)")
    parser.add_argument("--count", type=int, default=200, metavar="N", help="pictures of every size (default 200)")
    parser.add_argument(
        "--size", nargs="+", default=[SIZE], metavar="WxH", help=f"viewports in pixels, e.g. 2560x1440 (default {SIZE})"
    )
    parser.add_argument(
        "--cell", type=int, default=1, metavar="PIXELS",
        help="move controls by up to half of this, so that what they show begins where a cell of it does: the bundled "
        "checkpoint reads nothing else, its cells have 14 (default 1: leave them); one directory for each value",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first round of pages; the others follow (default 0)"
    )


def execute(options: argparse.Namespace) -> None:
    """Runs again from where an interrupted run stopped: pictures that are there are kept."""
    from ..synthetic.web.screenspot import make

    if options.seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {options.seed}")
    if options.cell < 1:
        raise ValueError(f"--cell must be 1 or more pixels, got {options.cell}")
    sizes = [size(s) for s in options.size]
    path, rows = make(Path(options.out), options.split, options.count, sizes, options.seed, options.cell)
    icons = sum(row["data_type"] == "icon" for row in rows)
    pictures = len({row["img_filename"] for row in rows})
    print(f"wrote {path}: {pictures} pictures, {len(rows)} targets ({len(rows) - icons} text, {icons} icon)")
    print(f"measure with: vlmopt eval --data {path} --boxes xywh")


def size(text: str) -> tuple[int, int]:
    """(width, height) from "1280x800"."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError(f"--size {text!r} must be WIDTHxHEIGHT in pixels, e.g. {SIZE}")
    return int(width), int(height)
