"""What can be named on a command line: presets and methods. Read as text, so that nothing needs torch."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PLUGINS = "vlmopt.methods"  # the entry points of other packages' methods
KINDS = {
    "selector": "vlmopt.pruning",
    "correction": "vlmopt.attention_fix",
    "pattern": "vlmopt.kernels.patterns",
    "eviction": "vlmopt.kv",
    "decoding": "vlmopt.decoding",
}


@dataclass(frozen=True)
class Preset:
    """A ready-made policy and what people need to know to choose it."""

    name: str
    group: str  # a key of `groups()`
    summary: str  # what it does, one sentence
    goal: str  # what it is for
    keeps: str  # visual tokens left, as a mean over the layers
    price: str  # what was measured that it costs: fewer right answers of tiny-qwen and tiny-llava, or time
    avoid: str  # when not; "" for controls
    policy: dict[str, Any]  # its dict form
    was: tuple[str, ...] = ()  # older names, still read


@dataclass(frozen=True)
class Entry:
    """A built-in method by name."""

    name: str
    kind: str  # a key of KINDS
    summary: str  # the first paragraph of its docstring


@cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((HERE / "policy" / "presets.json").read_text(encoding="utf-8"))
    return data


def default() -> str:
    """Return the name of the preset that is taken where none is given."""
    return str(_data()["default"])


def groups() -> dict[str, str]:
    """Return the title of every group of presets, in the order in which they are shown."""
    return dict(_data()["groups"])


def presets() -> dict[str, Preset]:
    """Return every preset by name, in the order in which they are shown."""
    found = [Preset(**{**data, "was": tuple(data.get("was", ()))}) for data in _data()["presets"]]
    return {preset.name: preset for preset in found}


def preset(name: str) -> Preset | None:
    """Return the preset of that name or older name, None if there is none."""
    return next((one for one in presets().values() if name in (one.name, *one.was)), None)


def methods() -> list[str]:
    """Return the names of all methods, also of other packages', which are not loaded for it."""
    return sorted({*(entry.name for entry in built_in()), *(point.name for point in entry_points(group=PLUGINS))})


@cache
def settings() -> dict[str, tuple[str, ...]]:
    """Return the names of the settings of every method of this package, by the method's name."""
    data: dict[str, list[str]] = json.loads((HERE / "policy" / "settings.json").read_text(encoding="utf-8"))
    return {name: tuple(names) for name, names in data.items()}


@cache
def devices() -> list[str]:
    """Return the names of the devices that `vlmopt estimate` knows without measuring."""
    return list(json.loads((HERE / "estimation" / "devices.json").read_text(encoding="utf-8"))["devices"])


@cache
def configs() -> list[str]:
    """Return the names of the models whose configs come with the package: sizes alone, no weights."""
    return list(json.loads((HERE / "estimation" / "models.json").read_text(encoding="utf-8")))


@cache
def built_in() -> tuple[Entry, ...]:
    """Return every method of this package, by name."""
    found = [Entry(name, kind, text) for kind, package in KINDS.items() for name, text in _registered(package)]
    return tuple(sorted(found, key=lambda entry: entry.name))


def _registered(package: str) -> Iterator[tuple[str, str]]:
    """Yield name and first paragraph of every class under a `@register("name")`, read off the source."""
    spec = find_spec(package)
    folders = [] if spec is None else spec.submodule_search_locations or []
    for path in sorted(path for folder in folders for path in Path(folder).glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "@register(" not in source:
            continue
        for node in ast.parse(source).body:
            for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "register":
                    text = ast.get_docstring(node) or ""  # type: ignore[arg-type]
                    yield ast.literal_eval(decorator.args[0]), " ".join(text.split("\n\n")[0].split())
