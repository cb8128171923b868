"""`vlmopt completion`: a script that completes commands and options in a shell."""

from __future__ import annotations

import argparse

import shtab

from .main import build_parser


def execute(options: argparse.Namespace) -> None:
    print(shtab.complete(build_parser(), shell=options.shell))
