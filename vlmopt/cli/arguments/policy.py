"""What `vlmopt policy` takes."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("show",), help="the only action; may be left out")
    parser.add_argument(
        "policy",
        metavar="name",
        help="preset, policy file, directory with vlmopt_policy.json, or a line such as fastv:keep_ratio=0.1,layer=4",
    )
