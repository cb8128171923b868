"""What `vlmopt serve` takes."""

from __future__ import annotations

import argparse

from ... import catalogue
from ...checkpoints.names import check_name
from ...choices import DTYPES, POLICY_LINE


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
    parser.add_argument(
        "--device", default="auto", help="where the model runs: auto, cpu, cuda, cuda:1, ... (default auto)"
    )
    parser.add_argument(
        "--dtype", default="auto", choices=DTYPES, help="precision of the weights (default auto: as stored)"
    )


def check(options: argparse.Namespace) -> None:
    """Refuse a model that does not exist, and options that cannot be right together."""
    if not 1 <= options.port <= 65535:
        raise ValueError(f"--port must be from 1 to 65535, got {options.port}")
    check_name(options.model)
