"""What `vlmopt search-patterns` takes."""

from __future__ import annotations

import argparse

from ...checkpoints.names import check_name
from ...choices import MATCHES
from ...paths import check_file
from .shared import device_and_dtype, model


def arguments(parser: argparse.ArgumentParser) -> None:
    model(parser)
    parser.add_argument(
        "--video", action="append", default=[], metavar="FILE", help="a long video, or: worlds; may be repeated"
    )
    parser.add_argument(
        "--images", metavar="DIR", help="directory of images to put into one prompt, or: worlds (generated)"
    )
    parser.add_argument(
        "--question",
        default="Describe what you see.",
        help="question that follows the video, or each image (default: Describe what you see.)",
    )
    parser.add_argument("--tokens", type=int, default=4096, metavar="N", help="length of a prompt (default 4096)")
    parser.add_argument(
        "--samples", type=int, metavar="N", help="how many prompts, at most 5 (default: one of each source)"
    )
    parser.add_argument(
        "--match", default="time", choices=MATCHES,
        help="which cost may reach 1.1 times that of the reference: time on this machine, or computed cells",
    )  # fmt: skip
    parser.add_argument(
        "--dense-layers", type=int, default=2, metavar="N", help="first layers that stay dense (default 2)"
    )
    parser.add_argument("--tile", type=int, default=64, metavar="N", help="block size of the patterns (default 64)")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="file to write the patterns to, e.g. patterns.json"
    )
    parser.add_argument("--into", metavar="FILE", help="profile of `vlmopt calibrate` to write them into as well")
    device_and_dtype(parser)


def check(options: argparse.Namespace) -> None:
    """Refuse names and files that do not exist, and options that cannot be right together."""
    for name, least in (("tokens", 1), ("samples", 1), ("dense_layers", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} must be {least} or more, got {value}")
    if not options.video and not options.images:
        raise ValueError("give --video FILE or --images DIR (or the word worlds for generated ones), or both")
    for path in options.video:
        if path != "worlds":
            check_file(path, "video")
    check_name(options.model)
