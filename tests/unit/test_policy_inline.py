"""Policies in one line, and presets as data."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint

import pytest

import vlmopt
from tools import method_settings
from vlmopt import catalogue, methods
from vlmopt.kernels.patterns import MinP
from vlmopt.policy import Policy
from vlmopt.policy.inline import check, split
from vlmopt.pruning import Debias, DivPrune, FastV, PixelRedundancy, Uniform


@pytest.mark.parametrize(
    ("line", "policy"),
    [
        ("fastv:keep_ratio=0.1,layer=4", Policy(prune=[FastV(keep_ratio=0.1, layer=4)])),
        ("fastv:keep_ratio=.1,layer=4", Policy(prune=[FastV(keep_ratio=0.1, layer=4)])),
        ("uniform:keep_ratio=1.", Policy(prune=[Uniform(keep_ratio=1.0)])),
        ("pixel_redundancy", Policy(prune=[PixelRedundancy()])),
        (
            "pixel_redundancy + div_prune:keep_ratio=0.3,positions=pospad",
            Policy(prune=[PixelRedundancy(), DivPrune(keep_ratio=0.3, positions="pospad")]),
        ),
        ("uniform:keep_ratio=0.5+min_p", Policy.load([Uniform(keep_ratio=0.5), MinP()])),
        (
            'debias:fit=per_sample,host={"method": "fastv", "keep_ratio": 0.25, "layer": 2}',
            Policy(prune=[Debias(FastV(keep_ratio=0.25, layer=2), fit="per_sample")]),
        ),
        ("screens+uniform:keep_tokens=9", Policy(prune=[PixelRedundancy(), Uniform(keep_tokens=9)])),
        (
            "uniform-25+boost",
            Policy.load([*vlmopt.presets()["uniform-25"].prune, *vlmopt.presets()["boost"].attention]),
        ),
    ],
)
def test_lines(line, policy):
    assert Policy.load(line) == policy


@pytest.mark.parametrize(
    ("line", "error", "match"),
    [
        ("fastv:keep_ratio", ValueError, "'keep_ratio' is not a new setting=value"),
        ("fastv:keep_ratio=0.1,keep_ratio=0.2", ValueError, "not a new setting"),
        ("fastvv:keep_ratio=0.1", ValueError, "did you mean 'fastv'"),
        ("DART:keep_ratio=0.1", ValueError, "unknown method 'DART'.*did you mean 'dart'"),
        ("balancd+fastv:keep_ratio=0.1", ValueError, "did you mean 'balanced'"),
        ("fastv:keep_ratio=2", ValueError, "keep_ratio must be"),
        ("fastv:keep_ratio=many", TypeError, "keep_ratio must be a number"),
        ("balanced:keep_ratio=0.1", ValueError, "is a preset and takes no settings"),
        ("uniform+", ValueError, "not part of a policy"),
        ("uniform+/etc/passwd", ValueError, "not part of a policy"),
        ("uniform:keep_ratio=0.5+fastv:keep_ratio=0.7,layer=2", ValueError, "must not grow"),
    ],
)
def test_bad_lines(line, error, match):
    with pytest.raises(error, match=match):
        Policy.load(line)


def test_signs_inside_brackets_and_quotes_do_not_split():
    assert split('a:b={"x": "1,2+3"},c=[1,2]', ",") == ['a:b={"x": "1,2+3"}', "c=[1,2]"]
    assert split('a:b="+"+c', "+") == ['a:b="+"', "c"]


def test_presets_are_data_that_everything_reads():
    rows = catalogue.presets()
    assert catalogue.default() in rows
    assert {row.group for row in rows.values()} == set(catalogue.groups())
    for name, row in rows.items():
        assert row.summary.endswith(".")
        assert row.avoid or row.group == "control", name
        assert Policy.load(name) == Policy.from_dict(row.policy)
    old = [name for row in rows.values() for name in row.was]
    assert {"safe", "diverse-25"} <= set(old)
    assert not set(old) & set(rows)
    assert Policy.load("safe") == Policy.load("sinks")
    json.dumps([row.policy for row in rows.values()])


def test_the_catalogue_names_what_is_registered():
    ours = {n: c for n, c in methods.registered().items() if c.__module__.startswith("vlmopt.")}
    found = {entry.name: entry for entry in catalogue.built_in()}
    assert set(found) == set(ours)
    for name, cls in ours.items():
        row = methods.entry(cls)
        assert (found[name].kind, found[name].summary) == (row["kind"], row["summary"])


def test_the_catalogue_names_every_setting():
    found = {name: tuple(names) for name, names in method_settings.found().items()}
    assert catalogue.settings() == found, "write them down again: python -m tools.method_settings"


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("fastv:keep_rato=.3", "fastv: unknown setting 'keep_rato' .did you mean 'keep_ratio'"),
        ("gentle+fastv:keep_rato=.3", "did you mean 'keep_ratio'"),
        ('debias:host={"method": "fastv", "layr": 2}', "fastv: unknown setting 'layr' .did you mean 'layer'"),
        ("debias:layer=2", "debias: unknown setting 'layer'"),  # that of its host
        ("focus_ui:scorr=runs/a,keep_ratio=.1", "did you mean 'scorer'"),
        ("runs/nowhere.json", "no policy file at 'runs/nowhere.json'"),
    ],
)
def test_misspelt_settings_are_refused_by_their_names_alone(line, match):
    with pytest.raises(ValueError, match=match) as seen:
        check(line)
    with pytest.raises(ValueError, match=match) as built:
        Policy.load(line)
    assert str(seen.value) == str(built.value)


def test_settings_of_other_packages_are_left_to_them(monkeypatch):
    point = EntryPoint("foreign_pick", "elsewhere:Pick", catalogue.PLUGINS)
    monkeypatch.setattr(catalogue, "entry_points", lambda group: [point])
    check("foreign_pick:sharpness=2+uniform:keep_ratio=.5")
    check("fastv:keep_ratio=.1+balanced")


@pytest.mark.parametrize("policy", [{"methd": "fastv"}, [{"methd": "fastv"}]], ids=["policy", "list"])
def test_a_misspelt_method_key_is_named(policy):
    with pytest.raises(ValueError, match=r"'methd' .did you mean 'method'"):
        Policy.load(policy)
