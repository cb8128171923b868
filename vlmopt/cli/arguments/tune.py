"""What `vlmopt tune` takes."""

from __future__ import annotations

import argparse

from ...checkpoints.names import check_name
from ...choices import OBJECTIVES
from ...paths import check_data
from .shared import device_and_dtype, model


def arguments(parser: argparse.ArgumentParser) -> None:
    model(parser)
    parser.add_argument(
        "--data", nargs="+", metavar="FILE",
        help="what vlmopt eval reads; samples without a right answer are marked by agreement with dense",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=float, default=1.0, metavar="POINTS", help="points that may be lost against dense (default 1)"
    )
    parser.add_argument(
        "--objective", default="ttft", choices=OBJECTIVES, help="which cost to bring down (default ttft)"
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        metavar="SHARE",
        help="probability with which no more than --budget may be lost (default 0.95)",
    )
    parser.add_argument("--space", metavar="FILE", help="JSON list of candidates that replace the usual ones")
    parser.add_argument("--base", metavar="POLICY", help="methods that every candidate has, such as corrections")
    parser.add_argument(
        "--minutes", type=float, help="time for the search; its choice is confirmed even if that takes longer"
    )
    parser.add_argument(
        "--best-effort", action="store_true", help="go on if there are too few images; the result says so"
    )
    parser.add_argument("--format", help="pope, chair, screenspot, manifest or worlds (default: told by the contents)")
    parser.add_argument("--images", metavar="DIR", help="where the images lie (default: beside the data file)")
    parser.add_argument("--boxes", help="how boxes are written: xyxy, xywh, xyxy-unit or xywh-unit")
    parser.add_argument(
        "--points", help="what points mean: pixels, resized, unit, hundred, thousand, loc (default: by model)"
    )
    parser.add_argument("--parser", default="stated", help="how answers are read, as in vlmopt eval (default stated)")
    parser.add_argument("--synonyms", metavar="FILE", help="table of objects for CHAIR (default: our own)")
    parser.add_argument(
        "--prompt", metavar="TEXT", help="template of the prompt; {question} stands for that of the sample"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="generate at most N tokens (default: by the kind of the sample)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="samples per call, as deployed (default 8)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="ask only N samples, chosen by the seed")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of --limit and of the split into search and hold-out (default 0)"
    )
    device_and_dtype(parser)
    parser.add_argument("--device-map", metavar="auto", help="auto: spread a model too big for one device over all")
    parser.add_argument(
        "--retry-errors", action="store_true", help="ask again the samples that failed in an earlier start"
    )
    parser.add_argument("--out", metavar="DIR", help="the directory of the search; one that was interrupted goes on")
    parser.add_argument("--report", metavar="DIR", help="only write the report of a finished search again")


def check(options: argparse.Namespace) -> None:
    """Refuse data and a model that do not exist, and options that cannot be right together."""
    if bool(options.report) == bool(options.out):
        raise ValueError("give --out DIR for a search, or --report DIR to report on one that was made before")
    if options.out and not options.data:
        raise ValueError("give --data: files of a data set, or the name of generated worlds")
    check_data(options.data or ())
    check_name(options.model)
