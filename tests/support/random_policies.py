"""Strategies for policies in their dict form, derived from the settings that methods declare."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from hypothesis import strategies as st

from tests.support.corrections import TABLE, made
from tests.support.families import FAMILIES
from vlmopt import Policy, methods
from vlmopt.policy.policy import GQA
from vlmopt.prefill import SparsePrefill
from vlmopt.reading import SparseReading

Strategy = st.SearchStrategy[Any]
WEIRD: list[Any] = [None, True, -1, 0, 1.5, float("nan"), float("inf"), 10**400, 2**62, "", "a" * 300, [], [[[]]], {}]
FAR_INTS, FAR_FLOATS = [500, 10**6, 2**31, 2**62], [5e-324, 2.0**-126, 1e-30, 1e30, 3.4e38, 1e308]
LAYERS = st.sampled_from(["0:", "1:", "2:-1", "1,3:5", "50%:", "-1", "6", "9:", ":", "x"])
NAMES = {"scorer": "untrained", "marker_from": "untrained"}  # settings that name files
SKIPPED = ("keep_ratio", "keep_tokens", "marker_from")
MEASURED = ("profile", "dims", "tau")  # settings that fit one model
DEPTH = 6  # decoder layers of the tiny models


def number(setting: dict[str, Any]) -> Strategy:
    """Values inside the declared bounds, the bounds themselves, and now and then one that is far out."""
    low = setting.get("min", setting.get("above", -2))
    high = setting.get("max", low + 8)
    whole = setting["kind"].startswith("int")
    usual = st.integers(low, min(high, low + 8)) if whole else st.floats(low, high, exclude_min="above" in setting)
    far = [value for value in (FAR_INTS if whole else FAR_FLOATS) if low < value <= setting.get("max", value)]
    return st.integers(0, 9).flatmap(lambda turn: st.sampled_from(far) if far and turn == 9 else usual)


def value(setting: dict[str, Any]) -> Strategy:
    """What a setting may hold, by its metadata."""
    name, kind = setting["name"], setting.get("kind")
    if name in NAMES:
        return st.just(NAMES[name])
    if "choices" in setting:
        return st.sampled_from(list(setting["choices"]))
    if name in ("layers", "full") and kind == "str":
        return LAYERS
    if name in ("tile", "run"):
        return st.sampled_from([16, 32, 64])
    if name == "layer" or name.endswith("_layer"):
        return st.integers(-2 if setting.get("min") is None else setting["min"], min(setting.get("max", DEPTH), DEPTH))
    if kind == "bool":
        return st.booleans()
    if kind in ("ints", "floats"):
        return st.lists(number(setting), max_size=3).map(sorted)
    return number(setting) if kind in ("int", "float") else st.sampled_from(WEIRD)


def odd(strategy: Strategy, wild: bool) -> Strategy:
    """In a wild policy, now and then something that cannot be meant."""
    return st.one_of(strategy, strategy, st.sampled_from(WEIRD)) if wild else strategy


@functools.cache
def registered(kind: str) -> list[dict[str, Any]]:
    """The library's own methods; those of the tests check nothing."""
    return [row for row in methods.describe() if row["kind"] == kind and row["package"] == "vlmopt"]


@functools.cache
def measured(name: str, host: str) -> dict[str, Any]:
    """What a correction was measured to need on a model."""
    if name not in TABLE:
        return {}
    (data,) = Policy(attention=[made(f"{name}-easy", FAMILIES[host])]).to_dict()["attention"]
    return {name: data[name] for name in MEASURED if name in data}


@st.composite
def method(draw: Any, kind: str, wild: bool, host: str, depth: int = 0) -> dict[str, Any]:
    """One registered method with some of its settings."""
    row = draw(st.sampled_from(registered(kind)))
    settings = {s["name"]: s for s in row["settings"]}
    data: dict[str, Any] = {"method": row["name"]}
    if kind == "selector" and "host" not in settings:
        budget = draw(st.sampled_from(["keep_ratio", "keep_ratio", "keep_tokens"]))
        data[budget] = draw(odd(value(settings[budget]), wild))
    if kind == "eviction":
        data["keep_ratio"] = draw(odd(value(settings["keep_ratio"]), wild))
    for name, setting in settings.items():
        if name == "host":
            data[name] = draw(method(kind, wild, host, depth + 1)) if wild else {"method": "fastv", "keep_ratio": 0.3}
        elif name == "scorer" or (
            name not in SKIPPED and (wild or setting.get("kind")) and draw(st.integers(0, 3)) == 3
        ):
            data[name] = draw(odd(value(setting), wild))
    if data.get("marker") == "trained":
        data["marker_from"] = "untrained"
    return data | measured(row["name"], host) if not wild or draw(st.booleans()) else data


@st.composite
def some_of(draw: Any, kind: type) -> dict[str, Any]:
    """Some settings of a part of a policy."""
    fields = [{"name": f.name, **f.metadata} for f in dataclasses.fields(kind)]
    return {f["name"]: draw(value(f)) for f in fields if f.get("kind") and draw(st.booleans())}


@st.composite
def reading(draw: Any) -> dict[str, Any]:
    """Sparse reading, from short contexts on."""
    return {**draw(some_of(SparseReading)), "min_keys": 1}


@st.composite
def prefill(draw: Any, wild: bool, host: str) -> dict[str, Any]:
    """A pattern, from short prompts on."""
    return {"pattern": draw(method("pattern", wild, host)), **draw(some_of(SparsePrefill)), "min_len": 1}


@st.composite
def policy(draw: Any, host: str) -> dict[str, Any]:
    """A policy's dict form for a family's tiny model: cuts in one or several places, and all else there is."""
    wild = draw(st.integers(0, 3)) == 3
    return {
        "prune": draw(st.lists(method("selector", wild, host), max_size=2)),
        "attention": draw(st.lists(method("correction", wild, host), max_size=2)),
        "prefill": draw(st.one_of(st.none(), st.none(), prefill(wild, host))),
        "kv": draw(st.one_of(st.none(), st.none(), method("eviction", wild, host))),
        "decoding": draw(st.one_of(st.just([]), st.lists(method("decoding", wild, host), max_size=2))),
        "read": draw(st.one_of(st.none(), st.none(), st.none(), reading())),
        "gqa": draw(odd(st.sampled_from(GQA), wild)),
        "seed": draw(odd(st.integers(0, 5), wild)),
    }
