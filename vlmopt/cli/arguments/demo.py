"""What `vlmopt demo` takes."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=8501, metavar="N", help="port to listen on (default 8501)")
    parser.add_argument(
        "--address", "--server.address", default="localhost", metavar="HOST",
        help="address to listen on (default localhost: this machine alone); "
        "0.0.0.0 lets everyone in who can reach it, without a password",
    )  # fmt: skip
    parser.add_argument(
        "--bundled-only", action="store_true",
        help="offer the bundled checkpoints alone, load nothing from directories or the Hub: for a page others use",
    )  # fmt: skip
    parser.add_argument("--no-browser", action="store_true", help="serve the page, but open no browser")
