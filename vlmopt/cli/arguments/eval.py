"""What `vlmopt eval` takes."""

from __future__ import annotations

import argparse
import os

from ...checkpoints.names import check_name
from ...evaluation.sweep import grid
from ...paths import check_data
from .shared import device_and_dtype, model


def arguments(parser: argparse.ArgumentParser) -> None:
    model(parser)
    parser.add_argument(
        "--data", nargs="+", metavar="FILE",
        help="files or directories of POPE, COCO (CHAIR), ScreenSpot, RefCOCO, DocVQA, ChartQA, TextVQA, Video-MME, a "
        "TSV of VLMEvalKit (MMBench, MMStar, MMMU), parquet, or a manifest; or generated images: worlds, worlds:scene, "
        "worlds:screen, worlds:pope, worlds:captions",
    )  # fmt: skip
    parser.add_argument(
        "--format",
        help="pope, chair, screenspot, refcoco, documents, videomme, tsv, manifest or worlds "
        "(default: told by the contents)",
    )
    parser.add_argument("--images", metavar="DIR", help="where the images lie (default: beside the data file)")
    parser.add_argument("--boxes", help="how boxes are written: xyxy, xywh, xyxy-unit or xywh-unit")
    parser.add_argument(
        "--points",
        help="what points mean: pixels, resized, unit, hundred, thousand, thousand-yx, loc (default: by model)",
    )
    parser.add_argument(
        "--parser", default="stated",
        help="how answers are read: stated (default: the final answer, without reasoning and markup); or, to compare "
        "with published figures of yes and no, reference (POPE's own parser), contractions or strict",
    )  # fmt: skip
    parser.add_argument(
        "--judge", metavar="COMMAND",
        help="a command that marks open answers: reads them as JSON lines, prints a number from 0 to 1 for each; also "
        "with --report",
    )  # fmt: skip
    parser.add_argument("--synonyms", metavar="FILE", help="table of objects for CHAIR (default: our own)")
    parser.add_argument(
        "--policy", nargs="+", action="extend", default=[], metavar="POLICY",
        help="presets, policy files, or lines such as fastv:keep_ratio=0.1,layer=4; compared "
        "on the same samples; dense is always one of them",
    )  # fmt: skip
    parser.add_argument(
        "--sweep", nargs="+", action="extend", default=[], metavar="METHOD",
        help="methods to try at every one of --ratios, such as fastv, div_prune or focus_ui:scorer=PATH, on the same "
        "samples; random and uniform come along as controls",
    )  # fmt: skip
    parser.add_argument(
        "--ratios", nargs="+", type=float, action="extend", default=[], metavar="RATIO",
        help="shares of the visual tokens that --sweep keeps, such as 0.1 0.25 0.5",
    )  # fmt: skip
    parser.add_argument(
        "--prompt", metavar="TEXT", help="template of the prompt; {question} stands for that of the sample"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="generate at most N tokens (default: by the kind of the sample)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="samples per call (default 8)")
    parser.add_argument("--limit", type=int, metavar="N", help="ask only N samples, chosen by the seed")
    parser.add_argument(
        "--seed",
        type=int,
        help="seed of --limit and of the intervals (default 0), and of the policies (default: their own)",
    )
    device_and_dtype(parser)
    parser.add_argument(
        "--device-map", metavar="auto", help="auto: spread a model that is too big for one device over all of them"
    )
    parser.add_argument(
        "--maps",
        type=int,
        default=64,
        metavar="N",
        help="save at most N maps of kept tokens for the report (default 64)",
    )
    parser.add_argument(
        "--retry-errors", action="store_true", help="ask again the samples that failed in an earlier run"
    )
    parser.add_argument("--out", metavar="DIR", help="directory of the run; an interrupted run goes on there")
    parser.add_argument(
        "--report", metavar="DIR", help="ask nothing; sum up a run directory again and rewrite its report"
    )
    parser.add_argument(
        "--compare", nargs=2, metavar=("FIRST", "SECOND"),
        help="ask nothing; compare two run directories (two models, two versions), paired where their samples agree; "
        "the report goes to --out",
    )  # fmt: skip


def check(options: argparse.Namespace) -> None:
    """Refuse data and a model that do not exist, and options that cannot be right together."""
    grid(options.sweep, options.ratios)
    if options.compare:
        asked = ("data", "report", "judge", "policy", "sweep")
        if beside := [f"--{name}" for name in asked if getattr(options, name)]:
            raise ValueError(f"--compare reads two runs that were made before: leave out {', '.join(beside)}")
        for run in options.compare:
            if not os.path.exists(os.path.join(run, "run.json")):
                raise ValueError(f"--compare {run} is not a run directory: there is no run.json")
        return
    if bool(options.report) == bool(options.out):
        raise ValueError("give --out DIR for a run, or --report DIR to report on one that was made before")
    if options.out and not options.data:
        raise ValueError("give --data: files of a data set, or the name of generated worlds")
    check_data(options.data or ())
    check_name(options.model)
