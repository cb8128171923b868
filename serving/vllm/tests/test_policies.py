"""What is asked of an engine, and what is refused. No engine."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmopt_vllm.policies import KEY, AtStart, Served

QUARTER = {"method": "div_prune", "keep_ratio": 0.25}
TRAINED = {"method": "uniform", "keep_ratio": 0.1, "positions": "pospad", "marker": "trained", "marker_from": "x"}


def asked(engine: Any, request: dict[str, Any]) -> Served | None:
    return AtStart.of(engine).asked(request)


def test_a_request_says_nothing_and_the_engine_decides():
    assert asked(QUARTER, {}).selector.keep_ratio == 0.25


@pytest.mark.parametrize("own", [None, {}, {"method": "uniform", "keep_ratio": 1.0}, {"prune": []}])
def test_a_request_may_be_dense(own):
    assert asked(QUARTER, {KEY: own}) is None


def test_settings_are_laid_over_the_method_of_the_engine():
    laid = asked(
        [{"method": "pixel_redundancy"}, {**QUARTER, "positions": "keep"}], {KEY: {"keep_tokens": 9, "seed": 4}}
    )
    assert (laid.selector.name, laid.selector.keep_tokens, laid.selector.keep_ratio) == ("div_prune", 9, None)
    assert laid.selector.positions == "keep"
    assert laid.seed == 4
    assert laid.before_tower.name == "pixel_redundancy"


@pytest.mark.parametrize("spelling", [
    "balanced", "div_prune:keep_ratio=0.25", QUARTER, [QUARTER], {"prune": [QUARTER]}, json.dumps({"prune": [QUARTER]}),
])  # fmt: skip
def test_every_spelling_of_a_policy_is_the_same_policy(spelling):
    assert asked(None, {KEY: spelling}).text == asked(QUARTER, {}).text


def test_a_path_is_read_for_the_engine_and_never_for_a_client(tmp_path):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"prune": [QUARTER]}))
    assert asked(str(path), {}).text == asked(QUARTER, {}).text
    with pytest.raises(ValueError, match="unknown preset"):
        asked(QUARTER, {KEY: str(path)})
    with pytest.raises(ValueError, match="unknown preset"):
        asked(QUARTER, {KEY: str(tmp_path)})


@pytest.mark.parametrize(("policy", "reason"), [
    ({"method": "fastv", "keep_ratio": 0.1, "layer": 2}, "layer=2 lies inside the LLM"),
    ({"method": "cd_pruner", "keep_ratio": 0.1}, "reads the question.*with relevance=none it does not"),
    ({"method": "dart", "keep_ratio": 0.1}, "with pivots_text=0 it does not"),
    ({"method": "mmtok", "keep_ratio": 0.1}, "with relevance=none it does not"),
    ({"method": "instruction_similarity", "keep_ratio": 0.1}, "reads the question"),
    ({"method": "evs", "keep_ratio": 0.1, "paper_compat": True}, "decides how many"),
    ({"method": "image_boost"}, "act inside the LLM"),
    ({"prefill": {"pattern": {"method": "min_p"}}}, "act inside the LLM"),
    ({"read": {"least": 64}}, "act inside the LLM"),
    (TRAINED, "trained markers are loaded when it starts"),
    ({"method": "uniform", "keep_ratio": 7}, "keep_ratio"),
    ({"method": "uniformly", "keep_ratio": 0.5}, "unknown method 'uniformly'"),
    ([{"method": "pixel_redundancy", "positions": "pospad"}, QUARTER], "one method alone"),
    (7, "a policy must be"),
])  # fmt: skip
def test_what_no_engine_can_follow_is_refused_with_the_reason(policy, reason):
    with pytest.raises((ValueError, TypeError), match=reason):
        asked(None, {KEY: policy})


def test_a_trained_marker_is_the_engines_or_none():
    assert asked(TRAINED, {}).trained == "x"
    assert asked(TRAINED, {KEY: {"keep_ratio": 0.5}}).trained == "x"
    assert asked(TRAINED, {KEY: {**TRAINED, "method": "random"}}).selector.name == "random"
    with pytest.raises(ValueError, match="marker_from='/etc' is not the engine's"):
        asked(TRAINED, {KEY: {"marker_from": "/etc"}})


def test_settings_without_a_method_need_one_of_the_engine():
    with pytest.raises(ValueError, match="names no method"):
        asked(None, {KEY: {"keep_ratio": 0.5}})


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
SETTINGS = "keep_ratio keep_tokens layer padding positions marker tower_layer allocation segment seed"
NAMES = st.sampled_from(["method", "prune", "attention", "prefill", "x", *SETTINGS.split()])  # fmt: skip
NAMED = "uniform div_prune vision_zip pixel_redundancy resize fastv evs zeroth_order"
METHODS = st.sampled_from(NAMED.split())
VALUES = st.recursive(
    LEAVES | METHODS, lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES | st.text(max_size=4), v, max_size=5),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(VALUES | st.dictionaries(NAMES, VALUES, max_size=6))
def test_anything_that_json_holds_is_followed_or_refused(value):
    with contextlib.suppress(ValueError, TypeError):
        asked(QUARTER, {KEY: value})
