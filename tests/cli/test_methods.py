"""Methods by name: the built-in ones, those of other packages through entry points, and what is refused."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint

import pytest

from vlmopt import attention_fix, catalogue, methods, pruning
from vlmopt.attention_fix import Correction
from vlmopt.policy import Policy
from vlmopt.pruning import Uniform

FOREIGN = '''
import dataclasses
from vlmopt import pruning

@pruning.register("foreign_pick")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pick(pruning.Selector):
    """Picks (arXiv 2401.00001)."""

    def pick(self, tokens, k):
        return pruning.Selection(tokens.ordinal[:k])
'''


@pytest.fixture
def offer(monkeypatch):
    """Pretend that packages with entry points are installed; gives a function (name, value) -> EntryPoint."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(methods, "installed", lambda: points)

    def add(name, value):
        points.append(EntryPoint(name, value, catalogue.PLUGINS))
        return points[-1]

    return add


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Put a foreign module on the path whose import registers a selector; gives the module's name."""
    (tmp_path / "vlmopt_test_plugin.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "vlmopt_test_plugin"
    sys.modules.pop("vlmopt_test_plugin", None)
    pruning.registry._methods.pop("foreign_pick", None)


def test_describe_feeds_forms_and_tables():
    rows = {row["name"]: row for row in methods.describe()}
    assert {"fastv", "random", "resize", "uniform"} <= set(rows)
    top = rows["fastv"]
    assert (top["kind"], top["paper"], top["reads"], top["package"]) == (
        "selector",
        "2403.06764",
        "attention",
        "vlmopt",
    )
    layer = next(s for s in top["settings"] if s["name"] == "layer")
    assert (layer["default"], layer["min"], layer["kind"]) == (2, 1, "int")
    json.dumps(list(rows.values()))


def test_entry_points_are_loaded_on_demand(offer, plugin):
    offer("foreign_pick", f"{plugin}:Pick")
    assert Policy.load("uniform-25").prune[0].name == "uniform"
    assert plugin not in sys.modules
    pick = methods.find("foreign_pick")
    assert pick.__module__ == plugin
    assert methods.find("foreign_pick") is methods.methods()["foreign_pick"] is pick  # no conflict with itself
    policy = Policy.load({"prune": [{"method": "foreign_pick", "keep_ratio": 0.5}]})
    assert Policy.load(policy.to_dict()) == policy
    assert next(r for r in methods.describe() if r["name"] == "foreign_pick")["paper"] == "2401.00001"


def test_a_broken_entry_point_is_named_and_harms_no_other_method(offer):
    offer("broken_pick", "vlmopt_no_such_module:Pick")
    assert methods.find("uniform") is Uniform
    with pytest.raises(ValueError, match=r"unknown method 'brokenpick' .did you mean 'broken_pick'"):
        methods.find("brokenpick")
    for ask in (methods.methods, methods.describe, lambda: methods.find("broken_pick")):
        with pytest.raises(ValueError, match=r"broken_pick.*cannot be loaded: ModuleNotFoundError"):
            ask()


def test_entry_points_that_are_refused(offer, plugin):
    offer("other_name", f"{plugin}:Pick")
    with pytest.raises(ValueError, match="is registered as 'foreign_pick'"):
        methods.find("other_name")
    offer("a_module", "json:dumps")
    with pytest.raises(ValueError, match=r"must name a pruning\.Selector"):
        methods.find("a_module")


def test_taken_names_are_refused(offer, monkeypatch):
    offer("uniform", "vlmopt_test_plugin:Pick")
    with pytest.raises(ValueError, match=r"uniform.*taken by vlmopt\.pruning\.uniform\.Uniform"):
        methods.methods()
    monkeypatch.setitem(attention_fix.registry._methods, "uniform", Correction)
    with pytest.raises(ValueError, match="taken twice"):
        methods.methods()


def test_two_packages_with_one_name(offer):
    offer("same", "vlmopt_a:Pick")
    offer("same", "vlmopt_b:Pick")
    with pytest.raises(ValueError, match="taken by method 'same'"):
        methods.find("same")
