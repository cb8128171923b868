"""The templates in page/: every text is escaped unless a template wrote it, and a name that is missing is an error."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .draw import coordinate, coordinates, outline
from .numbers import breakable, count, milliseconds, number, probability

FILTERS = (breakable, coordinate, coordinates, count, milliseconds, number, outline, probability)


def render(template: str, home: str = str(__package__), /, **names: Any) -> str:
    """Fill in the names of a template; only those called *.html or *.svg escape.

    Args:
        home: the package whose page/ has the template; what that includes may lie here.
    """
    return environment(home).get_template(template).render(**names)


def ready(name: str) -> Markup:
    """Read a file of page/ as it stands: our own style sheet or script."""
    return Markup((files(__package__) / "page" / name).read_text(encoding="utf-8"))


@cache
def environment(home: str = str(__package__)) -> Environment:
    """Make the environment of the templates.

    Filters are the functions that write figures for people; templates hold no figures of their own.
    """
    made = Environment(
        loader=ChoiceLoader([PackageLoader(name, "page") for name in dict.fromkeys((home, str(__package__)))]),
        autoescape=lambda name: name is not None and name.endswith((".html", ".svg")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update({function.__name__: function for function in FILTERS})
    return made
