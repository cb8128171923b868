"""Settings of selectors: what may be registered and set, and what is refused."""

from __future__ import annotations

import dataclasses
import math

import pytest

from vlmopt import Policy, pruning
from vlmopt.pruning import FastV, MMTok, Resize, ScoreSelector, Selection, Selector, Uniform, VisualTokens, register


def test_the_base_classes_cannot_be_used_alone():
    for cls in (Selector, ScoreSelector):
        with pytest.raises(TypeError, match="abstract"):
            cls(keep_ratio=0.5)


@pytest.mark.parametrize("name", ["uniform", "Upper", "", "_x", "x_", "a-b", "os.system", 3])
def test_names_that_cannot_be_registered(name):
    before = dict(pruning.registry)

    class Mine(Selector):
        def select(self, tokens: VisualTokens) -> Selection:
            return Selection(tokens.ordinal)

    with pytest.raises(ValueError, match="method name"):
        register(name)(Mine)
    with pytest.raises(TypeError, match="Selector"):
        register("fine")(int)
    assert dict(pruning.registry) == before


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({}, ValueError, "exactly one"),
        ({"keep_ratio": 0.5, "keep_tokens": 3}, ValueError, "exactly one"),
        ({"keep_ratio": 0}, ValueError, "keep_ratio.*> 0 and <= 1, got 0"),
        ({"keep_ratio": 1.01}, ValueError, "keep_ratio"),
        ({"keep_ratio": math.nan}, ValueError, "keep_ratio.*nan"),
        ({"keep_ratio": -math.inf}, ValueError, "keep_ratio"),
        ({"keep_ratio": True}, TypeError, "keep_ratio.*bool"),
        ({"keep_ratio": "0.5"}, TypeError, "keep_ratio.*str"),
        ({"keep_tokens": 0}, ValueError, "keep_tokens"),
        ({"keep_tokens": 2.0}, TypeError, "keep_tokens"),
        ({"keep_tokens": True}, TypeError, "keep_tokens"),
        ({"keep_ratio": 0.5, "layer": -1}, ValueError, "layer"),
        ({"keep_ratio": 0.5, "layer": 1.0}, TypeError, "layer"),
        ({"keep_ratio": 0.5, "layer": None}, TypeError, "layer"),
        ({"keep_ratio": 0.5, "positions": "gaps"}, ValueError, "keep, repack, pospad"),
        ({"keep_ratio": 0.5, "positions": 1}, TypeError, "positions"),
        ({"keep_ratio": 0.5, "marker": "first"}, ValueError, "mean, last"),
    ],
    ids=str,
)
def test_settings_are_checked(settings, error, match):
    with pytest.raises(error, match=match):
        Uniform(**settings)


def test_settings_of_single_methods():
    with pytest.raises(ValueError, match=r"layer.*>= 1"):
        FastV(keep_ratio=0.5, layer=0)
    with pytest.raises(ValueError, match=r"layer.*<= 0"):
        Resize(keep_ratio=0.5, layer=1)
    with pytest.raises(ValueError, match="keep, repack"):
        Resize(keep_ratio=0.5, positions="pospad")
    with pytest.raises(ValueError, match="keep_ratio"):
        Resize(keep_tokens=9)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Uniform(keep_ratio=0.5).keep_ratio = 0.1


def test_numbers_become_plain_python():
    import numpy as np

    method = Uniform(keep_ratio=np.float32(0.5), layer=np.int64(3))
    assert type(method.keep_ratio) is float
    assert type(method.layer) is int
    assert Uniform(keep_ratio=1).is_identity
    assert not Uniform(keep_tokens=1).is_identity
    with pytest.raises(ValueError, match="uniform: keep_tokens=1 is no fraction"):
        Uniform(keep_tokens=1).ratio  # noqa: B018
    assert not Uniform(keep_ratio=0.999).is_identity


@pytest.mark.parametrize("value", [5e-324, 1e-39, 1e39])
@pytest.mark.parametrize("name", ["alpha", "text_temperature", "vision_temperature"])
def test_numbers_that_scores_cannot_be_divided_by(name, value):
    with pytest.raises(ValueError, match=rf"mmtok: {name} must be 0 or a number from 1\.2e-38 to 3\.4e\+38 in size"):
        MMTok(keep_ratio=0.5, **{name: value})


def test_settings_explain_themselves():
    for cls in pruning.registry.values():
        if cls.__module__.startswith("vlmopt.pruning."):
            assert cls.__doc__
            assert all("help" in f.metadata for f in dataclasses.fields(cls))
            given = [f for f in dataclasses.fields(cls) if f.init and f.name not in ("host", "profile")]
            assert all("kind" in f.metadata for f in given)


def test_a_choice_that_need_not_read_the_question_says_how():
    unbound = {name: cls.unbound for name, cls in pruning.registry.items() if cls.unbound}
    assert set(unbound) == {"cd_pruner", "dart", "mmtok"}
    for name, setting in unbound.items():
        assert Policy.load(f"{name}:keep_ratio=0.5").prune[0].query_aware
        assert not Policy.load(f"{name}:keep_ratio=0.5,{setting}").prune[0].query_aware
