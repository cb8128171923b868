"""What `vlmopt make-screens` takes."""

from __future__ import annotations

import argparse

from ...choices import SIZE, SPLITS


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="directory for the PNG files and <split>_web.json")
    parser.add_argument("--split", choices=SPLITS, default="held-out", help="which pages (default held-out)")
    parser.add_argument("--count", type=int, default=200, metavar="N", help="images of every size (default 200)")
    parser.add_argument(
        "--size", nargs="+", default=[SIZE], metavar="WxH", help=f"viewports in pixels, e.g. 2560x1440 (default {SIZE})"
    )
    parser.add_argument(
        "--cell", type=int, default=1, metavar="PIXELS",
        help="move controls by up to half of this, so that what they show begins at a multiple of it; the bundled "
        "checkpoint needs 14, the side of its cells (default 1: do not move); use one directory for each value",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first round of pages; the others follow (default 0)"
    )
