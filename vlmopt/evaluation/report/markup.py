"""HTML without a template engine: every text is escaped unless a function of this module made it."""

from __future__ import annotations

from html import escape

VOID = frozenset({"img", "meta", "br", "col", "rect", "circle", "polygon", "polyline"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: str | None, css: str | None = None, **attributes: str | bool | None) -> Markup:
    """An element.

    Args:
        name: of the element.
        children: texts, escaped, and elements; None is left out.
        css: its classes.
        attributes: underscores become hyphens; None and False leave one out, True writes its name alone.
    """
    given = {"class": css, **attributes}
    written = "".join(
        f" {_hyphens(key)}" if value is True else f' {_hyphens(key)}="{escape(value)}"'
        for key, value in given.items()
        if value is not None and value is not False
    )
    if name in VOID and not children:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str | None) -> Markup:
    """Texts and elements one after the other."""
    return Markup("".join(c if isinstance(c, Markup) else escape(c) for c in children if c is not None))


def _hyphens(name: str) -> str:
    return name.strip("_").replace("_", "-")
