"""What `vlmopt worlds` takes."""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="directory for the images and their manifest"
    )
    parser.add_argument("--count", type=int, default=100, help="how many images (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image; the others follow")
    parser.add_argument("--questions", type=int, default=8, help="ask at most so many questions per image (default 8)")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(224, 224),
        metavar=("WIDTH", "HEIGHT"),
        help="size in pixels (default 224 224)",
    )
    parser.add_argument(
        "--family", choices=("scene", "screen", "both"), default="both", help="what to draw (default both)"
    )
