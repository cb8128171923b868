"""The templates in page/: every text is escaped unless a template wrote it, and a name that is missing is an error."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .draw import coordinate, coordinates, outline
from .facts import count, milliseconds, number, probability

FILTERS = (coordinate, coordinates, count, milliseconds, number, outline, probability)


def render(template: str, **names: Any) -> str:
    """Fill in the names of a template; only those called *.html escape."""
    return environment().get_template(template).render(**names)


def ready(name: str) -> Markup:
    """Read a file of page/ as it stands: our own style sheet or script."""
    return Markup((files(__package__) / "page" / name).read_text(encoding="utf-8"))


@cache
def environment() -> Environment:
    """Make the environment of the templates.

    Filters are the functions that write figures for people; templates hold no figures of their own.
    """
    made = Environment(
        loader=PackageLoader(str(__package__), "page"),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update({function.__name__: function for function in FILTERS})
    return made
