"""`vlmopt completion`: a script that completes commands, options, policies and paths in a shell."""

from __future__ import annotations

import argparse

import shtab

from .. import catalogue
from .parser import build_parser

PATHS = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}  # by metavar
NAMED = ("policy", "base", "what")  # options that take presets and methods


def execute(options: argparse.Namespace) -> None:
    parser, names = build_parser(), [*catalogue.presets(), *catalogue.methods()]
    for command in parser.commands.values():
        for action in command._actions:
            if action.metavar in PATHS:
                action.complete = PATHS[action.metavar]  # type: ignore[attr-defined]
            elif action.dest in NAMED:
                action.choices = names  # which nothing is parsed with
    print(shtab.complete(parser, shell=options.shell))
