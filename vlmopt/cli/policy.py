"""`vlmopt policy show NAME`: a policy as the JSON that `--policy` takes."""

from __future__ import annotations

import argparse

from ..policy import Policy


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("show",))
    parser.add_argument(
        "name",
        help="preset, policy file, directory with vlmopt_policy.json, or a line such as fastv:keep_ratio=0.1,layer=4",
    )


def execute(options: argparse.Namespace) -> None:
    print(Policy.load(options.name).to_json(), end="")
