"""What `vlmopt run` takes."""

from __future__ import annotations

import argparse

from ... import catalogue
from ...checkpoints.names import check_name
from ...choices import POLICY_LINE, UNITS
from ...paths import check_file
from .shared import device_and_dtype, model


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="image of the prompt; may be given several times"
    )
    parser.add_argument("--video", metavar="FILE", help="video of the prompt")
    parser.add_argument("--question", required=True, metavar="TEXT", help="question to ask")
    model(parser)
    parser.add_argument(
        "--policy", default=catalogue.default(),
        help=f"preset, policy file, or {POLICY_LINE} (default {catalogue.default()}; see vlmopt list)",
    )  # fmt: skip
    parser.add_argument(
        "--profile", metavar="FILE",
        help="use what `vlmopt calibrate` found: debias the policy's methods, give visual_sink the sinks and "
        "adaptive_generated_text the part iat",
    )  # fmt: skip
    parser.add_argument(
        "--patterns", metavar="FILE", help="add sparse prefill with what `vlmopt search-patterns` found"
    )
    parser.add_argument(
        "--points",
        choices=UNITS,
        help="what coordinates in the answer mean (default: by model; if that is unknown, no click is drawn)",
    )
    parser.add_argument(
        "--out",
        default="vlmopt-out",
        metavar="DIR",
        help="directory for overlay.png and result.json (default vlmopt-out)",
    )
    device_and_dtype(parser)
    parser.add_argument(
        "--max-new-tokens", type=int, default=32, metavar="N", help="generate at most N tokens (default 32)"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="measured runs of each variant (default 5)")
    parser.add_argument(
        "--warmup", type=int, default=1, metavar="N", help="unmeasured runs of each variant before these (default 1)"
    )
    parser.add_argument("--seed", type=int, help="seed of everything random in the policy (default: the policy's own)")
    parser.add_argument("--fps", type=float, help="frames per second to sample from the video (default 2)")


def check(options: argparse.Namespace) -> None:
    """Refuse names and files that do not exist, and options that cannot be right together."""
    if not options.question.strip():
        raise ValueError("the question is empty; give --question some text")
    if bool(options.image) == bool(options.video):
        raise ValueError("give --image FILE (once or several times) or --video FILE, and not both")
    for name, least in (("max_new_tokens", 1), ("repeats", 1), ("warmup", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be {least} or more, got {getattr(options, name)}")
    if options.fps is not None and not 0 < options.fps < float("inf"):
        raise ValueError(f"--fps must be a number above 0, got {options.fps}")
    for path in options.image:
        check_file(path, "image")
    if options.video:
        check_file(options.video, "video")
    check_name(options.model)
