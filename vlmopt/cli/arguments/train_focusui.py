"""What `vlmopt train-focusui` takes."""

from __future__ import annotations

import argparse

from ...checkpoints.names import check_name
from .shared import model


def arguments(parser: argparse.ArgumentParser) -> None:
    model(parser)
    parser.add_argument(
        "--data", nargs="+", default=["worlds:screen"],
        help="one or several in turn: worlds:screen (drawn screens, default), worlds (the second stage sees scenes, "
        "too), web (windows of rendered pages), web:DIR (rendered before), JSON files of ScreenSpot's kind",
    )  # fmt: skip
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="directory for scorer/ and checkpoint/; run again to resume"
    )
    parser.add_argument(
        "--steps-scorer",
        type=int,
        default=2000,
        metavar="N",
        help="steps of the first stage, of the scorer (default 2000)",
    )
    parser.add_argument(
        "--steps-model", type=int, default=1000, metavar="N",
        help="steps of the second stage, of marker and language model (default 1000; 0: the scorer alone, no marker)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size",
        type=int,
        default=16,
        metavar="N",
        help="examples per step, of all processes together (default 16)",
    )
    parser.add_argument(
        "--lr-scorer",
        type=float,
        metavar="RATE",
        help="learning rate of the scorer (default 1e-4 * max(1, 2048 / width))",
    )
    parser.add_argument(
        "--lr-model",
        type=float,
        metavar="RATE",
        help="learning rate of the second stage (default 5e-6 * max(1, 2048 / width))",
    )
    parser.add_argument(
        "--heads", type=int, default=8, metavar="N", help="heads of the scorer's attentions (default 8)"
    )
    parser.add_argument(
        "--pooling",
        default="mean",
        choices=("mean", "max"),
        help="how scores are pooled over the instruction's words (default mean)",
    )
    parser.add_argument("--train-tower", action="store_true", help="the second stage trains the vision tower, too")
    parser.add_argument("--images", metavar="DIR", help="where the images of a JSON file lie (default: beside it)")
    parser.add_argument("--boxes", help="how its boxes are written: xyxy, xywh, xyxy-unit or xywh-unit")
    parser.add_argument("--points", help="what its answers count in: pixels, resized, unit, hundred, thousand, loc")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default 0)")
    parser.add_argument(
        "--save-every", type=float, default=120.0, metavar="SECONDS", help="how often the state is saved (default 120)"
    )
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu"), help="auto, what `accelerate` finds, or cpu (default auto)"
    )
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"),
        help="precision of the weights (default float32); "
        "`accelerate launch --mixed_precision bf16` computes in half precision",
    )  # fmt: skip


def check(options: argparse.Namespace) -> None:
    """Refuse a model that does not exist."""
    check_name(options.model)
