"""`vlmopt completion`: a script that completes commands and options in a shell."""

from __future__ import annotations

import argparse

import shtab

from .main import build_parser


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help='for example: eval "$(vlmopt completion bash)"')


def execute(options: argparse.Namespace) -> None:
    print(shtab.complete(build_parser(), shell=options.shell))
