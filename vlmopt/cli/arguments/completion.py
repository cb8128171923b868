"""What `vlmopt completion` takes."""

from __future__ import annotations

import argparse

import shtab


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell", choices=shtab.SUPPORTED_SHELLS, help='shell to complete in, e.g. eval "$(vlmopt completion bash)"'
    )
