"""What `vlmopt show-pattern` takes."""

from __future__ import annotations

import argparse

from ... import catalogue
from ...checkpoints.names import check_name
from ...choices import PLANTED
from ...paths import check_file
from ...policy import inline
from .shared import device_and_dtype, model


def arguments(parser: argparse.ArgumentParser) -> None:
    model(parser)
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="image of the prompt; may be given several times"
    )
    parser.add_argument("--video", metavar="FILE", help="video of the prompt")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="text behind the images or the video, or alone")
    parser.add_argument("--planted", choices=PLANTED, help="use a made-up head with known attention instead of a model")
    parser.add_argument("--tokens", type=int, default=4096, metavar="N", help="length with --planted (default 4096)")
    parser.add_argument("--layer", type=int, default=0, metavar="N", help="decoder layer (default 0)")
    parser.add_argument("--head", type=int, default=0, metavar="N", help="query head (default 0)")
    parser.add_argument(
        "--pattern", metavar="METHOD",
        help="name, a line such as min_p:tau=0.5, or JSON (default min_p, or what finds the planted structure)",
    )  # fmt: skip
    parser.add_argument("--patterns", metavar="FILE", help="what `vlmopt search-patterns` found for this head")
    parser.add_argument("--size", type=int, default=512, metavar="N", help="side of a map in pixels (default 512)")
    parser.add_argument("--out", default="pattern.png", metavar="FILE", help="file to draw into (default pattern.png)")
    device_and_dtype(parser)


def check(options: argparse.Namespace) -> None:
    """Refuse names and files that do not exist, and options that cannot be right together."""
    if options.pattern and not options.pattern.lstrip().startswith("{"):
        inline.check_settings(inline.methods_of(options.pattern, set(catalogue.methods())))
    for name, least in (("layer", 0), ("head", 0), ("size", 64)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} must be {least} or more, got {getattr(options, name)}")
    if options.pattern and options.patterns:
        raise ValueError("give --pattern METHOD or --patterns FILE, not both")
    given = [bool(options.planted), bool(options.image), bool(options.video)]
    if sum(given) > 1 or not (any(given) or options.prompt):
        raise ValueError("give one of --image FILE, --video FILE and --planted KIND, or --prompt TEXT alone")
    if options.planted and (options.prompt or options.patterns):
        raise ValueError("--planted takes no --prompt and no --patterns, it has no model")
    for path in options.image:
        check_file(path, "image")
    if options.video:
        check_file(options.video, "video")
    check_name(options.model)
