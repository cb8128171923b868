"""What `vlmopt estimate` takes."""

from __future__ import annotations

import argparse

from ... import catalogue
from ...checkpoints.names import check_described
from ...choices import MEASURED
from ...core import unknown

DEVICES = "h100 a100 l40s 4090 t4"  # what most rent or own; `cpu` is there to be asked for


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="Qwen/Qwen2.5-VL-7B-Instruct",
        help="config.json, directory, bundled name, or Hub id; many are known without a network (see --models)",
    )  # fmt: skip
    parser.add_argument("--models", action="store_true", help="list the models whose configs come with the package")
    parser.add_argument(
        "--image", nargs="+", default=["1280x800"], metavar="WxH", help="size in pixels (default 1280x800)"
    )
    parser.add_argument("--images", type=int, default=1, metavar="N", help="how many of each size (default 1)")
    parser.add_argument(
        "--text", type=int, default=60, metavar="N", help="tokens of text, chat template included (default 60)"
    )
    parser.add_argument("--new-tokens", type=int, default=128, metavar="N", help="generated tokens (default 128)")
    parser.add_argument(
        "--policy", nargs="+", default=["balanced"], metavar="POLICY",
        help="presets, files or lines such as fastv:keep_ratio=0.1; dense is always shown",
    )  # fmt: skip
    parser.add_argument(
        "--device",
        nargs="+",
        default=DEVICES.split(),
        metavar="NAME",
        help=f"devices (default {DEVICES}); see --devices",
    )
    parser.add_argument("--devices", action="store_true", help="list the devices with their peaks and sources")
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float16", "float32"),
        help="precision of the weights (default bfloat16; float16 or float32 where a device lacks it)",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="samples that run together (default 1)")
    parser.add_argument(
        "--engine", default="eager", choices=("eager", "graph"),
        help="eager: transformers; graph: whole steps are launched at once, as serving engines do, and --rps always",
    )  # fmt: skip
    parser.add_argument(
        "--assume-keep", type=float, metavar="FRACTION",
        help="share of visual tokens to assume where a method decides by the content how many stay",
    )  # fmt: skip
    parser.add_argument(
        "--calibrate", nargs="?", const="here", metavar="NAME",
        help="measure this machine first (a minute), call it NAME, and predict for it (default name: here)",
    )  # fmt: skip
    parser.add_argument(
        "--measured", metavar="FILE", help=f"measured devices: read here, written by --calibrate (default {MEASURED})"
    )
    parser.add_argument(
        "--rps", type=float, metavar="RATE", help="find by simulation how many devices serve RATE requests per second"
    )
    parser.add_argument(
        "--limit-ms", type=float, default=2000, metavar="MS",
        help="with --rps: time to the first token that 95 %% of the requests get (default 2000)",
    )  # fmt: skip
    parser.add_argument(
        "--mix",
        metavar="FILE",
        help="with --rps: file of requests, one JSON object per line with image, images, text, new_tokens",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--figure", metavar="FILE", help="draw the stages, dense and policies, as SVG")


def check(options: argparse.Namespace) -> None:
    """Refuse options that cannot be right together, and models and devices that are not known."""
    if options.figure and not options.figure.endswith(".svg"):
        raise ValueError(f"--figure {options.figure!r} must end in .svg, the only format it is drawn in")
    if options.mix and options.rps is None:
        raise ValueError("--mix says what is asked of many devices; give --rps, too")
    if options.rps is not None and (options.figure or options.batch != 1):
        raise ValueError("--rps forms batches itself and has no figure: leave out --batch and --figure")
    check_described(options.model)
    for name in options.device if options.measured is None else ():
        if name not in catalogue.devices():
            raise ValueError(unknown("device", name, catalogue.devices()))
