"""Settings to start from: what a form or a first try fills in where a method's defaults leave something open."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from vlmopt.pruning import Selector

from .. import methods
from ..checkpoints import HERE
from ..methods import BASES, Method

KEEP = 0.25
DEPTH = 32  # decoder layers of the models that defaults of papers are for
MOVED = ("layer", "layers", "object_layer")  # settings that name layers


def starting(name: str, layers: int | None = None) -> dict[str, Any]:
    """Return the dict form of the method `name` that works on a model of `layers` decoder layers.

    None for `layers`: as in the papers. A selector keeps a quarter; layers that the model does not have move to the
    same relative depth, and a block of the tower with them, for small models are small throughout; a method around
    another one gets the first that fits.

    Raises:
        ValueError: no such method.
    """
    cls = methods.find(name)
    found: dict[str, Any] = {"method": name}
    if issubclass(cls, Selector) and next(f.init for f in fields(cls) if f.name == "keep_ratio"):
        found["keep_ratio"] = KEEP
    for f in fields(cls):
        if not f.init:
            continue
        default = methods.default_of(f)
        if (inner := holds(name, f.name)) and default is None and not optional(cls, f.name):
            found[f.name] = starting("fastv" if "fastv" in inner else inner[0], layers)
        elif f.name in MOVED and f.metadata.get("kind") in ("int", "ints") and layers is not None:
            deep = default if isinstance(default, tuple) else (default,)
            if max(deep, default=0) >= layers:
                moved = shallower(deep, layers)
                found[f.name] = moved if isinstance(default, tuple) else moved[0]
    return found


def shallower(deep: tuple[int, ...], layers: int) -> list[int]:
    """Return rising layers below `layers`, at the relative depth of `deep` in `DEPTH`; fewer if there is no room."""
    moved: list[int] = []
    for layer in deep:
        place = max(round(layer * layers / DEPTH), moved[-1] + 1 if moved else 1)
        if place < layers:
            moved.append(place)
    return moved


def holds(name: str, setting: str) -> list[str]:
    """Return the names of the methods that a setting can hold; empty if it holds none."""
    kinds = [t for t in kinds_of(methods.find(name), setting) if isinstance(t, type) and issubclass(t, BASES)]
    return [other for other, cls in methods.methods().items() if other != name and issubclass(cls, tuple(kinds))]


def optional(cls: type[Method], setting: str) -> bool:
    return type(None) in kinds_of(cls, setting)


def kinds_of(cls: type[Method], setting: str) -> tuple[Any, ...]:
    """Return the types in the annotation of a field."""
    hint = get_type_hints(cls)[setting]
    return get_args(hint) or (hint,)


def depth_of(model: str) -> int | None:
    """Return the number of decoder layers of a bundled checkpoint or a directory, from its config.json alone.

    None where that does not say; a Hub id is not looked up: None.
    """
    for place in (HERE / model, Path(model)):
        file = place / "config.json"
        if os.path.isfile(file):  # pathlib raises where a name is too long
            try:
                config = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return None  # loading says what is wrong with it
            inner = config.get("text_config") if isinstance(config, Mapping) else None
            depth = {**(config if isinstance(config, Mapping) else {}), **(inner or {})}.get("num_hidden_layers")
            return depth if isinstance(depth, int) else None
    return None
