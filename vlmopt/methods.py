"""Find methods by name: selectors, corrections, patterns, evictions, decoding, and those of other packages.

A package adds a method by an entry point in the group "vlmopt.methods" whose name is the method's registered name and
whose object is the class. Entry points are loaded when their method is asked for, never at import; a name found in a
file is never imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeAlias

from vlmopt import attention_fix, pruning
from vlmopt.attention_fix import Correction
from vlmopt.core import check_depth, near, shown, unknown, unknown_setting
from vlmopt.pruning import Selector

from . import decoding, kv
from .catalogue import PLUGINS
from .decoding import Decoding
from .kernels import patterns
from .kernels.patterns import Pattern
from .kv import Eviction

Method: TypeAlias = Selector | Correction | Pattern | Eviction | Decoding
BASES = (Selector, Correction, Pattern, Eviction, Decoding)


def methods() -> dict[str, type[Method]]:
    """Return every known method class by name, with all entry points loaded.

    Raises:
        ValueError: an entry point cannot be loaded, is not a method, or bears a taken name.
    """
    for point in plugins().values():
        load(point)
    return dict(sorted(registered().items()))


def find(name: Any) -> type[Method]:
    """Return the class registered as `name`.

    Raises:
        ValueError: no such method, or its entry point cannot be loaded. TypeError: the name is not a string.
    """
    if not isinstance(name, str):
        raise TypeError(f"a method name must be a string, got {shown(name)} of type {type(name).__name__}")
    known, points = registered(), plugins()
    if name in points:
        return load(points[name])
    if name not in known:
        names = sorted({*known, *points})
        raise ValueError(unknown("method", name, names))
    return known[name]


def build(data: Any) -> Method:
    """Make a method from its dict form {"method": name, setting: value, ...}.

    Raises:
        TypeError: not a dict, or a value of the wrong type. ValueError: unknown name or setting, value out of range,
            nested too deep.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"a method must be a dict with a 'method' key, got {shown(data)} of type {type(data).__name__}")
    check_depth(data)
    if "method" not in data:
        slip = next((f": {shown(key)}{hint}" for key in data if (hint := near(str(key), ["method"]))), "")
        raise ValueError(f"'method' is missing in {shown(dict(data))}{slip}; give the name of a method, e.g. 'uniform'")
    cls = find(data["method"])
    names = [f.name for f in stored(cls)]
    for key in data:
        if key != "method" and key not in names:
            raise ValueError(unknown_setting(cls.name, key, names))
    try:
        return cls(**{key: decoded(value) for key, value in data.items() if key != "method"})
    except TypeError as error:  # also a required setting that is missing
        raise TypeError(f"{cls.name}: {error}" if cls.name not in str(error) else str(error)) from error


def to_dict(method: Method) -> dict[str, Any]:
    """Return the JSON-ready dict form of a method, with the settings that differ from their defaults only."""
    settings = {f.name: getattr(method, f.name) for f in stored(type(method))}
    default = {f.name: default_of(f) for f in stored(type(method))}
    changed = {name: encoded(value) for name, value in settings.items() if value != default[name]}
    return {"method": method.name, **changed}


def describe() -> list[dict[str, Any]]:
    """Return one entry per method for lists, forms and command lines.

    {"name", "kind": "selector" | "correction" | "pattern" | "eviction" | "decoding", "summary", "paper": arXiv id or
    None, "reads", "package", "settings": [{"name", "default", "help", "kind", "min", "max", "above", "choices"}, ...]};
    bounds where they exist.
    """
    return [entry(cls) for cls in methods().values()]


def entry(cls: type[Method]) -> dict[str, Any]:
    doc = cls.__doc__ or ""
    paper = re.search(r"arXiv[:\s]\s*(\d{4}\.\d{4,5})", doc)
    return {
        "name": cls.name,
        "kind": kind_of(cls),
        "summary": " ".join(doc.strip().split("\n\n")[0].split()),
        "paper": paper.group(1) if paper else None,
        "reads": cls.reads,
        "package": cls.__module__.split(".")[0],
        "settings": [{"name": f.name, "default": default_of(f), **f.metadata} for f in stored(cls)],
    }


def kind_of(cls: type[Method]) -> str:
    return next(base.__name__.lower() for base in BASES if issubclass(cls, base))


def registered() -> dict[str, type[Method]]:
    """Return the classes whose modules are imported.

    Raises:
        ValueError: methods of different kinds bear the same name.
    """
    found: dict[str, type[Method]] = {}
    kinds: tuple[Mapping[str, type[Method]], ...] = (
        pruning.registry,
        attention_fix.registry,
        patterns.registry,
        kv.registry,
        decoding.registry,
    )
    for kind in kinds:
        for name, cls in kind.items():
            if name in found:
                raise ValueError(
                    f"method name {name!r} is taken twice, by a {kind_of(found[name])} and by a {kind_of(cls)}; "
                    "rename one"
                )
            found[name] = cls
    return found


def plugins() -> dict[str, EntryPoint]:
    """Return the entry points by name, not loaded.

    Raises:
        ValueError: two packages offer the same name, or one offers that of a built-in method.
    """
    found: dict[str, EntryPoint] = {}
    for point in installed():
        cls = registered().get(point.name)
        if cls is not None and point.module.split(".")[0] != cls.__module__.split(".")[0]:
            raise ValueError(
                f"{origin(point)}: the name is taken by {cls.__module__}.{cls.__qualname__}; choose another"
            )
        if point.name in found and found[point.name].value != point.value:
            raise ValueError(
                f"{origin(point)}: the name is taken by {origin(found[point.name])}; uninstall one of them"
            )
        found[point.name] = point
    return found


@cache  # packages do not come and go while Python runs, and a look costs ten milliseconds
def installed() -> tuple[EntryPoint, ...]:
    """Return the entry points of all installed packages."""
    return tuple(entry_points(group=PLUGINS))


def load(point: EntryPoint) -> type[Method]:
    """Return the class behind an entry point, registered under the entry point's name."""
    try:
        cls = point.load()
    except Exception as error:  # whatever a foreign module does on import
        raise ValueError(f"{origin(point)} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, BASES)):
        raise ValueError(
            f"{origin(point)} must name a pruning.Selector, attention_fix.Correction, vlmopt.kernels.Pattern, "
            f"vlmopt.kv.Eviction or vlmopt.decoding.Decoding class, got {cls!r}"
        )
    if registered().get(point.name) is not cls:
        raise ValueError(
            f"{origin(point)} must name the class registered as {point.name!r}; "
            f"{cls.__qualname__} is registered as {cls.name!r}"
        )
    return cls


def origin(point: EntryPoint) -> str:
    """Describe an entry point for messages."""
    package = f" of package {point.dist.name}" if point.dist else ""
    return f"method {point.name!r} ({point.value}){package}"


def stored(cls: type[Method]) -> list[Field[Any]]:
    """Return the settings of a method that a file can hold: all but what is `given` in Python alone."""
    return [f for f in fields(cls) if f.init and not f.metadata.get("given")]


def default_of(f: Field[Any]) -> Any:
    """Return the default of a field; None for a required one."""
    if f.default_factory is not MISSING:
        return f.default_factory()
    return None if f.default is MISSING else f.default


def encoded(value: Any) -> Any:
    if isinstance(value, BASES):
        return to_dict(value)
    if isinstance(value, (tuple, list)):
        return [encoded(v) for v in value]
    return value.to_dict() if hasattr(value, "to_dict") else value


def decoded(value: Any) -> Any:
    if isinstance(value, Mapping) and "method" in value:
        return build(value)
    if isinstance(value, (tuple, list)):
        return tuple(decoded(v) for v in value)
    return value
