"""`vlmopt policy show NAME`: a policy as the JSON that `--policy` takes."""

from __future__ import annotations

import argparse

from ..policy import Policy

NAME = "policy"
HELP = "print a policy as JSON"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("show",))
    parser.add_argument("name", help="preset name, policy file, or directory with vlmopt_policy.json")


def execute(options: argparse.Namespace) -> None:
    print(Policy.load(options.name).to_json(), end="")
