"""What `vlmopt calibrate` takes."""

from __future__ import annotations

import argparse
import os

from ... import catalogue
from ...checkpoints.names import check_name
from ...choices import IAT, PARTS
from ...core import unknown
from .shared import device_and_dtype, model


def arguments(parser: argparse.ArgumentParser) -> None:
    model(parser)
    parser.add_argument("--images", metavar="DIR", help="directory of images, or: worlds (generated)")
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="FILE",
        help="annotations of COCO or a manifest, for the part iat; see `vlmopt eval` (default: generated images)",
    )  # fmt: skip
    parser.add_argument("--synonyms", metavar="FILE", help="table of objects, for the part iat (default: our own)")
    parser.add_argument("--out", required=True, metavar="FILE", help="the profile to write, e.g. profile.json")
    parser.add_argument(
        "--host", action="append", default=[], metavar="NAME:LAYER",
        help="a method and the layer before which it cuts; may be repeated (default: all, at their usual layers)",
    )  # fmt: skip
    parser.add_argument(
        "--only", action="append", default=[], choices=(*PARTS, IAT),
        help="measure this part; may be repeated (default: all but iat). heads includes sinks; iat, for "
        "adaptive_generated_text, needs images whose objects are known",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, default=200, metavar="N", help="look at no more than N images (default 200)"
    )
    parser.add_argument(
        "--question",
        default="Describe the image.",
        help="question about every image of a directory (default: Describe the image.)",
    )
    device_and_dtype(parser)


def check(options: argparse.Namespace) -> None:
    """Refuse names and directories that do not exist, and options that cannot be right together."""
    if options.samples < 1:
        raise ValueError(f"--samples must be 1 or more, got {options.samples}")
    iat, directory = IAT in options.only, options.images not in (None, "worlds")
    if (options.data or options.synonyms) and not iat:
        raise ValueError("--data and --synonyms are for --only iat; add it, or leave them out")
    if iat and directory and not options.data:
        raise ValueError(
            f"--only iat needs images whose objects are known, and nothing names those in {options.images}: add "
            "--data with annotations of COCO, or describe generated images with --images worlds"
        )
    if set(options.only) != {IAT} and options.images is None:
        raise ValueError("give --images DIR, or the word worlds for generated images")
    if directory and not os.path.isdir(options.images):
        raise ValueError(f"--images {options.images} is not a directory; give one, or the word worlds")
    for text in options.host:
        name, _, layer = text.partition(":")
        if not layer.isdecimal():
            raise ValueError(f"--host {text!r} must be NAME:LAYER, e.g. fastv:2")
        if name not in catalogue.methods():
            raise ValueError(unknown("method", name, catalogue.methods()))
    if options.host and options.only and "debias" not in options.only:
        raise ValueError("--host names what --only debias measures; leave it out, or add --only debias")
    check_name(options.model)
