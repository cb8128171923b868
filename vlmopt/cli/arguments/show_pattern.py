"""What `vlmopt show-pattern` takes."""

from __future__ import annotations

import argparse

from ...choices import DTYPES, PLANTED


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny-qwen", help="bundled name, directory, or Hub id (default tiny-qwen)")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="may be given several times")
    parser.add_argument("--video", metavar="FILE")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="after the images or the video, or alone")
    parser.add_argument("--planted", choices=PLANTED, help="use a made-up head with known attention instead of a model")
    parser.add_argument("--tokens", type=int, default=4096, metavar="N", help="length with --planted (default 4096)")
    parser.add_argument("--layer", type=int, default=0, metavar="N")
    parser.add_argument("--head", type=int, default=0, metavar="N", help="query head")
    parser.add_argument(
        "--pattern", metavar="METHOD",
        help="name, a line such as min_p:tau=0.5, or JSON (default min_p, or what finds the planted structure)",
    )  # fmt: skip
    parser.add_argument("--patterns", metavar="FILE", help="what `vlmopt search-patterns` found for this head")
    parser.add_argument("--size", type=int, default=512, metavar="N", help="side of a map in pixels (default 512)")
    parser.add_argument("--out", default="pattern.png", metavar="FILE", help="default pattern.png")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="auto", choices=DTYPES)
