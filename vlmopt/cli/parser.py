"""Which commands there are, and the parser of their arguments; those of a command are imported when it is named."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from ..core import near
from ..version import __version__


class Command(NamedTuple):
    """A command and its module: `<module>.py` has `execute(options)`, `arguments/<module>.py` says what it takes.

    The latter may have `check(options)`, which refuses what can be refused before torch is loaded.
    """

    module: str
    help: str


COMMANDS = {
    "run": Command("run", "ask a model about an image or a video, dense and with a policy, and compare"),
    "look": Command("look", "ask about an image, find the part that the question looks at, and ask again about that"),
    "eval": Command("eval", "compare policies on a data set: accuracy, hallucination, clicks, latency, and a report"),
    "estimate": Command("estimate", "predict what a model costs on a GPU, dense and under policies, from its config"),
    "tune": Command("tune", "find the fastest policy inside a quality budget, confirmed on your own data"),
    "demo": Command("demo", "open a page that shows what a model looks at, what was dropped, and what it cost"),
    "serve": Command("serve", "serve a model with a policy through an OpenAI-compatible API, one request at a time"),
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


class Parser(argparse.ArgumentParser):
    """A parser that names the nearest option for one it does not know, and the nearest choice for a value."""

    def __init__(self, **facts: Any) -> None:
        self.options: list[str] = []
        self.commands: dict[str, Parser] = {}
        super().__init__(**facts)

    def add_argument(self, *names: Any, **facts: Any) -> argparse.Action:
        self.options += [name for name in names if name.startswith("--")]
        if "choices" in facts:
            facts.setdefault("type", one_of(tuple(facts["choices"])))
        return super().add_argument(*names, **facts)

    def unknown(self, words: Sequence[str]) -> str:
        """Say which of the words is an option that no argument has; "" where there is none."""
        for word in words:
            name = word.partition("=")[0]
            sentence = " " in name  # argparse takes it for a value, too
            if name.startswith("--") and not sentence and not any(known.startswith(name) for known in self.options):
                return f"unknown option {name!r}{near(name, self.options)}"
        return ""


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """Make what argparse reads a value with; it runs before argparse compares the value with `choices`."""

    def read(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(
                f"unknown value {text!r}{near(text, choices)}; choose {', '.join(choices)}"
            )
        return text

    return read


def build_parser(filled: list[str] | None = None) -> Parser:
    """Make the parser with the arguments of the commands in `filled`, or of all of them where it is None."""
    parser = Parser(prog="vlmopt", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"vlmopt {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, command in COMMANDS.items():
        own = parser.commands[name] = commands.add_parser(name, help=command.help, description=command.help)
        if filled is None or name in filled:
            import_module(f".arguments.{command.module}", __package__).arguments(own)
            own.add_argument("--traceback", action="store_true", help="on an error, show where it happened")
    return parser
