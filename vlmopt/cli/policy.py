"""`vlmopt policy NAME`: a policy as the JSON that `--policy` takes."""

from __future__ import annotations

import argparse

from ..policy import Policy


def execute(options: argparse.Namespace) -> None:
    print(Policy.load(options.policy).to_json(), end="")
