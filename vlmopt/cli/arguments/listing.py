"""What `vlmopt list` takes."""

from __future__ import annotations

import argparse

from ...choices import SECTIONS


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="?", metavar="WHAT", help=f"a preset, a method, or one of: {', '.join(SECTIONS)} (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every setting")
