"""Run a command: what it is told is checked before its module is imported, and what it raises becomes one sentence."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

from ..core import near
from ..policy import inline
from .parser import COMMANDS, build_parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit code: 0 or its own, 2 with one sentence on stderr, or that of a signal."""
    words = sys.argv[1:] if arguments is None else arguments
    named = next((word for word in words if not word.startswith("-")), None)
    if named is not None and named not in COMMANDS:
        hint = near(named, [*COMMANDS, "--help"])
        return refused(f"unknown command {named!r}{hint}; commands: {', '.join(COMMANDS)}")
    parser = build_parser([] if named is None else [named])
    if not words:
        parser.print_help(sys.stderr)
        return 2
    asked, name = (parser, "vlmopt") if named is None else (parser.commands[named], f"vlmopt {named}")
    if wrong := asked.unknown(words):
        return refused(f"{wrong}; see `{name} --help`")
    options, left = parser.parse_known_args(words)
    if left:
        return refused(f"unknown arguments {' '.join(left)!r}; see `{name} --help`")
    try:
        check_options(options)
        code: int | None = import_module(f".{COMMANDS[options.command].module}", __package__).execute(options)
        sys.stdout.flush()
    except BrokenPipeError:  # as in `vlmopt list | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest when it ends
        return 141
    except Exception as error:
        if options.traceback or not expected(error):
            raise
        return refused(" ".join(str(error).split()))
    except KeyboardInterrupt:
        return 130
    return code or 0


def check_options(options: argparse.Namespace) -> None:
    """Refuse policies that name what does not exist and options that do not fit together, before torch is loaded."""
    for name in ("policy", "base"):
        given = getattr(options, name, None)
        for text in [given] if isinstance(given, str) else given or ():
            inline.check(text)
    arguments = import_module(f".arguments.{COMMANDS[options.command].module}", __package__)
    if hasattr(arguments, "check"):
        arguments.check(options)


def expected(error: Exception) -> bool:
    """Tell errors that a user can mend from faults of ours; torch is asked only where it is loaded."""
    torch = sys.modules.get("torch")
    kinds = (ValueError, TypeError, OSError, *([] if torch is None else [torch.OutOfMemoryError]))
    return isinstance(error, kinds)


def refused(why: str) -> int:
    print(f"vlmopt: error: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
