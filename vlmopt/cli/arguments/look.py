"""What `vlmopt look` takes."""

from __future__ import annotations

import argparse

from ...checkpoints.names import check_name
from ...choices import ANSWERS, LOOKS, POLICY_LINE, REFINE, SINKS
from ...paths import check_file
from .shared import device_and_dtype, model


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", required=True, metavar="FILE", help="image of the prompt")
    parser.add_argument("--question", required=True, metavar="TEXT", help="question to ask")
    model(parser)
    parser.add_argument(
        "--policy", default="dense",
        help=f"policy of the second answer: preset, policy file, or {POLICY_LINE} (default dense; see vlmopt list)",
    )  # fmt: skip
    parser.add_argument(
        "--look", default="contrast", choices=LOOKS,
        help="contrast: upper middle layers, all answer tokens, components; relative: one layer, the first token, one "
        "window (default contrast)",
    )  # fmt: skip
    parser.add_argument(
        "--refine", default="crop", choices=REFINE,
        help="crop: cut the part out and enlarge it; mask: leave it where it is, black around it (default crop)",
    )  # fmt: skip
    parser.add_argument(
        "--answer", default="refined", choices=ANSWERS,
        help="refined: ask about the second image alone; both: about the first one and it (default refined)",
    )  # fmt: skip
    parser.add_argument("--layers", metavar="TEXT", help="decoder layers, such as 62%%:80%% (default: by --look)")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="answer tokens that count, 1 is fast (default: by --look)"
    )
    parser.add_argument(
        "--share", type=float, default=0.3, metavar="F", help="share of the image that is kept, up to 1 (default 0.3)"
    )
    parser.add_argument("--most", type=int, default=3, metavar="N", help="components that are kept (default 3)")
    parser.add_argument(
        "--sinks", default="leave_out", choices=SINKS, help="attention sinks among visual tokens (default leave_out)"
    )
    parser.add_argument("--general", metavar="TEXT", help="the instruction that the question is compared with")
    parser.add_argument("--out", default="look.png", metavar="FILE", help="file to draw into (default look.png)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    device_and_dtype(parser)
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, metavar="N", help="most tokens of each answer (default 64)"
    )


def check(options: argparse.Namespace) -> None:
    """Refuse names and files that do not exist, and numbers out of range."""
    if not options.question.strip():
        raise ValueError("the question is empty; give --question some text")
    if options.general is not None and not options.general.strip():
        raise ValueError("the general instruction is empty; give --general some text, or leave it out")
    for name in ("most", "max_new_tokens", "steps"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {value}")
    if not 0 < options.share <= 1:
        raise ValueError(f"--share must be a number above 0 and at most 1, got {options.share}")
    check_file(options.image, "image")
    check_name(options.model)
