"""What all commands that run a model take alike."""

from __future__ import annotations

import argparse

from ...choices import DTYPES


def model(parser: argparse.ArgumentParser) -> None:
    """Take the name of a model."""
    parser.add_argument("--model", default="tiny-qwen", help="bundled name, directory, or Hub id (default tiny-qwen)")


def device_and_dtype(parser: argparse.ArgumentParser) -> None:
    """Take where the model runs, and in which precision."""
    parser.add_argument(
        "--device", default="auto", help="where the model runs: auto, cpu, cuda, cuda:1, ... (default auto)"
    )
    parser.add_argument(
        "--dtype", default="auto", choices=DTYPES, help="precision of the weights (default auto: as stored)"
    )
