"""`vlmopt worlds`: generated images and their questions as files."""

from __future__ import annotations

import argparse

from ..synthetic.writing import write


def execute(options: argparse.Namespace) -> None:
    if options.count < 1:
        raise ValueError(f"--count must be 1 or more, got {options.count}")
    print(write(options.out, options.count, options.seed, options.questions, tuple(options.size), options.family))
