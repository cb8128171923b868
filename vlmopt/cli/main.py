"""The command line: which commands there are, and how one is run. A command's module is imported when it is called."""

from __future__ import annotations

import argparse
import re
import sys
from importlib import import_module
from typing import NamedTuple

from ..core import near
from ..version import __version__


class Command(NamedTuple):
    """A command and the module that has its `arguments(parser)` and `execute(options)`."""

    module: str
    help: str


COMMANDS = {
    "run": Command("run", "ask a model about an image or a video, dense and with a policy, and compare"),
    "eval": Command("eval", "compare policies on a data set: accuracy, hallucination, clicks, latency, and a report"),
    "demo": Command("demo", "open a page that shows what a model looks at, what was dropped, and what it cost"),
    "list": Command("listing", "show presets and methods; with a name, everything about one of them"),
    "policy": Command("policy", "print a policy as JSON"),
    "calibrate": Command("calibrate", "measure trends, attention sinks and heads of a model, for debiased pruning"),
    "search-patterns": Command("search_patterns", "find the best sparse pattern for every head of a model"),
    "show-pattern": Command("show_pattern", "draw which parts of one head's attention map a sparse pattern reads"),
    "make-screens": Command("make_screens", "render web pages as images, with what to click and where"),
    "train-focusui": Command("train_focusui", "train a FocusUI scorer for a model, then its marker and language model"),
    "worlds": Command("worlds", "write generated images and their questions"),
    "completion": Command("completion", "print a script that completes commands and options in a shell"),
}
DESCRIPTION = "Faster, smaller, less hallucinating vision-language models, without forking them."


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit code: 0, or 2 with one sentence on stderr."""
    words = sys.argv[1:] if arguments is None else arguments
    named = next((word for word in words if not word.startswith("-")), None)
    if named is not None and named not in COMMANDS:
        return refused(f"unknown command {named!r}{near(named, COMMANDS)}; commands: {', '.join(COMMANDS)}")
    options, unknown = build_parser([] if named is None else [named]).parse_known_args(words)
    if unknown:
        return refused(f"{named}: {unread(unknown, options.usage)}; see `vlmopt {named} --help`")
    try:
        options.execute(options)
    except Exception as error:
        if options.traceback or not expected(error):
            raise
        return refused(" ".join(str(error).split()))
    except KeyboardInterrupt:
        return 130
    return 0


def unread(words: list[str], usage: str) -> str:
    """Say which words no argument of a command took, with the nearest option of its usage for the first."""
    name = words[0].partition("=")[0]
    return f"unknown arguments {' '.join(words)!r}{near(name, re.findall('--[a-z-]+', usage))}"


def expected(error: Exception) -> bool:
    """Tell what a user can mend from a fault of ours; torch is asked only where it is loaded."""
    torch = sys.modules.get("torch")
    kinds = (ValueError, TypeError, OSError, *([] if torch is None else [torch.OutOfMemoryError]))
    return isinstance(error, kinds)


def refused(why: str) -> int:
    print(f"vlmopt: error: {why}", file=sys.stderr)
    return 2


def build_parser(filled: list[str] | None = None) -> argparse.ArgumentParser:
    """Make the parser with the arguments of the commands in `filled` (all of them where None), which are imported."""
    parser = argparse.ArgumentParser(prog="vlmopt", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"vlmopt {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.help, description=command.help)
        if filled is None or name in filled:
            module = import_module(f".{command.module}", __package__)
            module.arguments(own)
            own.add_argument("--traceback", action="store_true", help="on an error, show where it happened")
            own.set_defaults(execute=module.execute, usage=own.format_usage())
    return parser


if __name__ == "__main__":
    sys.exit(main())
