"""What `vlmopt serve` takes."""

from __future__ import annotations

import argparse

from ... import catalogue
from ...checkpoints.names import check_name
from ...choices import POLICY_LINE
from .shared import device_and_dtype


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="bundled name, directory, or Hub id")
    parser.add_argument(
        "--policy", default=catalogue.default(),
        help=f"preset, policy file, or {POLICY_LINE} (default {catalogue.default()}; see vlmopt list)",
    )  # fmt: skip
    parser.add_argument(
        "--host", default="localhost", help="address to listen on (default localhost: this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port to listen on (default 8000)")
    device_and_dtype(parser)


def check(options: argparse.Namespace) -> None:
    """Refuse a model that does not exist, and options that cannot be right together."""
    if not 1 <= options.port <= 65535:
        raise ValueError(f"--port must be from 1 to 65535, got {options.port}")
    check_name(options.model)
