"""The policy form, generated from what methods tell of themselves: a new method appears here by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import streamlit as st

import vlmopt
from vlmopt import methods
from vlmopt.analysis.starting import holds, starting
from vlmopt.apps.page import presets
from vlmopt.apps.page.jobs import escaped, told
from vlmopt.apps.page.words import words
from vlmopt.policy.text import summary
from vlmopt.prefill import SparsePrefill

FIRST = ("keep_ratio", "layer", "layers")  # of the settings that all selectors share, these are shown at once
SLOT = {"selector": "prune", "correction": "attention", "pattern": "prefill", "eviction": "kv", "decoding": "decoding"}
BESIDE = ("read", "gqa", "tuned")  # of a policy's parts, those that have no widgets: as the line has them
NONE = "none"
Fields = dict[str, Any]


def policy_form(layers: int | None) -> vlmopt.Policy | None:
    """Draw the form; return its policy, or None (with a sentence about what is wrong with it).

    `layers`: decoder layers of the model, for where new methods start; None where they are not known yet.
    """
    known = {method["name"]: method for method in methods.describe()}
    presets.choice(from_line)
    if "entries" not in st.session_state:
        from_line()
    if refused := st.session_state.get("refused"):
        st.error(escaped(refused), icon=":material/error:")
        return None
    data: dict[str, Any] = {"prune": [], "attention": [], "decoding": [], "prefill": {}, **st.session_state.beside}
    for number, entry in list(st.session_state.entries.items()):
        method = known[entry["method"]]
        with st.expander(method["name"], icon=":material/tune:"):
            built = method_form(method, entry, f"m{number}", layers)
            st.button("Remove", key=f"remove-{number}", on_click=st.session_state.entries.pop, args=(number,))
        put(data, SLOT[method["kind"]], built)
    if any(known[e["method"]]["kind"] == "pattern" for e in st.session_state.entries.values()):
        with st.expander("Sparse prefill", icon=":material/grid_on:"):
            found = [f for f in fields(SparsePrefill) if "kind" in f.metadata]
            settings = [{"name": f.name, "default": f.default, **f.metadata} for f in found]
            data["prefill"] |= settings_form(settings, st.session_state.prefill, "prefill", "", layers)
    adder(known, layers)
    data["seed"] = int(st.number_input("Seed", min_value=0, step=1, key="seed", help="Of everything random."))
    if not data["prefill"]:
        del data["prefill"]
    try:
        policy = vlmopt.Policy.from_dict(data)
    except (ValueError, TypeError) as error:
        st.error(escaped(str(error)), icon=":material/error:")
        return None
    changed = " (changed)" if presets.line() and policy != vlmopt.Policy.load(presets.line(), paths=False) else ""
    st.caption(escaped(summary(policy.to_dict()) + changed))
    return policy


def put(data: dict[str, Any], slot: str, built: Fields) -> None:
    if slot == "prefill" and "pattern" in data["prefill"]:
        st.error("A policy has one pattern for the prefill; remove the others.", icon=":material/error:")
    elif slot == "prefill":
        data["prefill"]["pattern"] = built
    elif slot == "kv" and "kv" in data:
        st.error("A policy has one eviction; remove the others.", icon=":material/error:")
    elif slot == "kv":
        data["kv"] = built
    else:
        data[slot].append(built)


def from_line() -> None:
    """Fill the form with the chosen preset or line; one that cannot be read is `refused`, none changes nothing."""
    st.session_state.refused = ""
    if not presets.line():
        return
    try:
        policy = vlmopt.Policy.load(presets.line(), paths=False)
    except (ValueError, TypeError) as error:
        st.session_state.refused = str(error)
    else:
        filled(policy)


def filled(policy: vlmopt.Policy) -> None:
    """Fill the form with a policy; its widgets are new ones, so this may be called wherever state may be set."""
    data = policy.to_dict()
    prefill = dict(data["prefill"] or {})
    pattern = prefill.pop("pattern", None)
    st.session_state.prefill = prefill
    st.session_state.beside = {name: data[name] for name in BESIDE if data.get(name) is not None}
    st.session_state.seed = policy.seed
    st.session_state.entries = {}
    for one in (*data["prune"], *data["attention"], pattern, data["kv"], *data["decoding"]):
        if one:
            append(one)


def append(data: Fields) -> None:
    """Add a method; numbers are never used again, so that its widgets are its own."""
    st.session_state.count = st.session_state.get("count", 0) + 1
    st.session_state.entries[st.session_state.count] = data


def adder(known: Mapping[str, Fields], layers: int | None) -> None:
    """Choose a method to add."""

    def add() -> None:
        if name := st.session_state.adding:
            append(starting(name, layers))
            st.session_state.adding = None

    ordered = sorted(known, key=lambda name: (list(SLOT).index(known[name]["kind"]), name))
    st.selectbox(
        "Add a method",
        ordered,
        index=None,
        key="adding",
        placeholder="Add a method",
        label_visibility="collapsed",
        format_func=lambda name: f"{name} · {known[name]['kind']}",
        on_change=add,
    )


def method_form(method: Fields, data: Fields, key: str, layers: int | None) -> Fields:
    """Draw the widgets of one method; return its dict form. `data` holds what the widgets start with."""
    paper = f" [arXiv {method['paper']}](https://arxiv.org/abs/{method['paper']})" if method["paper"] else ""
    st.caption(told(method["summary"]) + paper)
    name, hidden = method["name"], shared(method["kind"])
    return {"method": name, **settings_form(method["settings"], data, key, name, layers, hidden)}


def shared(kind: str) -> frozenset[str]:
    """Return the settings that every method of a kind has, and that stay out of sight at first."""
    names = [{s["name"] for s in method["settings"]} for method in methods.describe() if method["kind"] == kind]
    plain = [own for own in names if "keep_ratio" in own or kind != "selector"]  # a wrapper leaves these to its host
    return frozenset(set.intersection(*plain)) - frozenset(FIRST) if plain else frozenset()


def settings_form(
    settings: list[Fields],
    data: Fields,
    key: str,
    method: str,
    layers: int | None,
    hidden: frozenset[str] = frozenset(),
) -> Fields:
    """Draw settings and return the values that say something; those in `hidden` are behind a button unless set."""
    found: Fields = {}
    behind = [s for s in settings if s["name"] in hidden and s["name"] not in data]
    behind += [s for s in settings if "max" in s and s.get("min") == s["max"]]  # no choice
    for setting in (s for s in settings if s not in behind):
        found[setting["name"]] = field(setting, data.get(setting["name"]), f"{key}-{setting['name']}", method, layers)
    if behind:
        with st.popover("More settings", width="stretch"):
            for setting in behind:
                name = setting["name"]
                found[name] = field(setting, data.get(name), f"{key}-{name}", method, layers)
    return {name: value for name, value in found.items() if value is not None}


def field(setting: Fields, given: Any, key: str, method: str, layers: int | None) -> Any:
    """Draw one widget by the setting's metadata; return None where it was left open."""
    name, kind, default = setting["name"], setting.get("kind"), setting["default"]
    value = default if given is None else given
    about: dict[str, Any] = {
        "label": words(method, name),
        "key": key,
        "help": told(f"`{name}`: {setting.get('help', '')}"),
    }
    if kind is None:
        inner = holds(method, name) if method else []
        return nested(about, value, inner, key, layers) if inner else from_json(about, value)
    if kind == "bool":
        return st.toggle(value=bool(value), **about)
    if "choices" in setting:
        options = [*([NONE] if default is None else []), *setting["choices"]]
        chosen = st.selectbox(options=options, index=options.index(NONE if value is None else value), **about)
        return None if chosen == NONE and default is None else chosen
    if kind in ("floats", "ints"):
        return numbers(about, value, int if kind == "ints" else float)
    if kind == "str":
        return st.text_input(value=value or "", **about) or None
    return number(about, setting, value)


def number(about: Fields, setting: Fields, value: Any) -> Any:
    """Draw a slider where both ends and hundredths do, else a box that may stay empty where None is the default."""
    low, high = setting.get("min", setting.get("above")), setting.get("max")
    if setting["kind"] == "int":
        bounds: Fields = {
            "min_value": low if low is None else int(low),
            "max_value": high if high is None else int(high),
        }
        return st.number_input(value=value, step=1, placeholder=NONE, **bounds, **about)
    if value is not None and low is not None and high is not None and math.isclose(value * 100 % 1, 0, abs_tol=1e-9):
        least = float(low) + (0.01 if "above" in setting else 0)
        return st.slider(value=float(value), min_value=least, max_value=float(high), step=0.01, **about)
    ends: Fields = {"min_value": low if low is None else float(low), "max_value": high if high is None else float(high)}
    start = None if value is None else float(value)
    return st.number_input(value=start, step=None, format="%g", placeholder=NONE, **ends, **about)


def numbers(about: Fields, value: Any, kind: type) -> Any:
    text = st.text_input(value=", ".join(map(str, value or ())), placeholder="numbers with commas", **about)
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        st.error(f"{about['label']}: give numbers with commas between them, such as 2, 4.", icon=":material/error:")
        return value


def nested(about: Fields, value: Any, inner: list[str], key: str, layers: int | None) -> Fields | None:
    """Draw a method inside a method."""
    value = methods.to_dict(value) if isinstance(value, methods.BASES) else value
    options = [NONE, *inner]
    start = NONE if value is None else value["method"]
    chosen = st.selectbox(options=options, index=options.index(start), **about)
    if chosen == NONE:
        return None
    method = methods.entry(methods.find(chosen))
    data = value if chosen == start else starting(chosen, layers)
    with st.container(border=True):
        return method_form(method, data, f"{key}-{chosen}", layers)


def from_json(about: Fields, value: Any) -> Any:
    """Draw a field for a measured profile, pasted as JSON."""
    start = "" if value is None else json.dumps(methods.encoded(value))
    text = st.text_area(value=start, placeholder="JSON", height=68, **about)
    try:
        return json.loads(text) if text.strip() else None
    except ValueError:
        st.error(f"{about['label']}: this is not JSON.", icon=":material/error:")
        return None
