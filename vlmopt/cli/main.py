"""The command line: `vlmopt run | eval | demo | calibrate | search-patterns | show-pattern | list | policy | ...`."""

from __future__ import annotations

import argparse
import importlib
import sys

import torch

from ..version import __version__
from . import calibrate, demo, listing, make_screens, policy, run, search_patterns, show_pattern, train_focusui
from . import eval as evaluation

COMMANDS = (
    run, evaluation, demo, calibrate, search_patterns, show_pattern, make_screens, train_focusui, listing, policy,
)  # fmt: skip
# Commands with a parser of their own: name -> (module with `main(arguments)`, help). Imported when called.
DELEGATED = {
    "worlds": ("vlmopt.synthetic.__main__", "write generated pictures and their questions"),
    "train-worlds": ("vlmopt.training.worlds", "train a bundled checkpoint from scratch"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, or 2 with one sentence on stderr."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] in DELEGATED:
        importlib.import_module(DELEGATED[words[0]][0]).main(words[1:])
        return 0
    options = build_parser().parse_args(words)
    try:
        options.execute(options)
    except (ValueError, TypeError, OSError, torch.OutOfMemoryError) as error:
        if options.traceback:
            raise
        print(f"vlmopt: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vlmopt", description="Faster, smaller, less hallucinating vision-language models, without forking them."
    )
    parser.add_argument("--version", action="version", version=f"vlmopt {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        own = commands.add_parser(command.NAME, help=command.HELP, description=command.HELP)
        command.arguments(own)
        own.add_argument("--traceback", action="store_true", help="on an error, show where it happened")
        own.set_defaults(execute=command.execute)
    for name, (_, text) in DELEGATED.items():
        commands.add_parser(name, help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
