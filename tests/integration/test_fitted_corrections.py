"""Corrections fitted to a model: what is known of it is filled in, what is not is refused, doubts are spoken out."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, Image
from tests.support.massive import prompt
from tests.support.mechanism import forward
from vlmopt.api import session_of
from vlmopt.attention_fix import InformedTokens, SinkProfile, VisualSink
from vlmopt.attention_fix.sink_scores import Published
from vlmopt.checks import model_facts, whole_blocks
from vlmopt.runtime.structure import structure_of


def model_of(name="llava"):
    return copy.deepcopy(FAMILIES[name].build("sdpa"))


def none_found(model, **facts):
    known = model_facts(model, structure_of(model)) | {"name_or_path": "mine"} | facts
    return SinkProfile(model=known, samples=8, dims=(), tau=2.5, stats={"reason": "no massive activations"})


def test_a_model_without_sinks_leaves_nothing_to_do():
    """Said twice, when the policy is installed and in the report; outputs keep every bit."""
    model, batch = model_of(), prompt(0)
    before = forward(model, batch)
    method = VisualSink(profile=none_found(model))
    assert method.is_identity
    assert not method.needs
    with pytest.warns(UserWarning, match=r"visual_sink changes nothing: .* \(no massive activations; .* of mine, 8 s"):
        vlmopt.optimize(model, method)
    assert torch.equal(forward(model, batch), before)
    report = vlmopt.report(model)
    vlmopt.restore(model)
    (skipped,) = report.skipped
    assert skipped["what"] == "visual_sink"
    assert "the model has no visual sinks (no massive activations" in skipped["why"]
    assert skipped["why"] in str(report)
    assert vlmopt.Policy.load(json.loads(vlmopt.Policy(attention=[method]).to_json())).attention == (method,)
    with pytest.raises(ValueError, match="layers is 6, the profile's is 9"):
        vlmopt.optimize(model, VisualSink(profile=none_found(model, layers=9)))


def test_published_dimensions_are_filled_in(monkeypatch):
    model = model_of()
    with pytest.raises(ValueError, match=r"no sink dimensions are published for .*`vlmopt calibrate`"):
        vlmopt.optimize(model, VisualSink())
    assert session_of(model) is None
    row = Published("tiny", {"hidden_size": 64, "layers": 6, "model_type": ("llava",)}, (3, 17), "P")
    monkeypatch.setattr("vlmopt.attention_fix.sink_scores.PUBLISHED", (row,))
    with vlmopt.optimized(model, VisualSink(recycle=0.5)):
        forward(model, prompt(0))
        (shown,) = vlmopt.report(model).policy["attention"]
    assert shown == {"method": "visual_sink", "recycle": 0.5, "dims": [3, 17]}
    monkeypatch.setattr("vlmopt.attention_fix.sink_scores.PUBLISHED", (replace(row, status="T"),))
    with pytest.raises(ValueError, match=r"unverified for tiny: \(3, 17\)"):
        vlmopt.optimize(model, VisualSink())


def test_towers_with_windows_are_read_where_the_whole_image_is_seen():
    model = model_of("qwen2_5_vl")
    assert whole_blocks(model) == (1,)
    assert whole_blocks(model_of()) is None
    with vlmopt.optimized(model, InformedTokens()):
        fitted = session_of(model).policy.attention[0]
        forward(model, FAMILIES["qwen2_5_vl"].inputs([[5, Image(0), 7]]))
        assert vlmopt.report(model).corrections[0]["method"] == "informed_tokens"
    assert (fitted.local_block, fitted.summary_block) == (1, 1)
    seven = InformedTokens(summary_block=-1).for_model({"whole_blocks": (7, 15, 23, 31)})
    assert (seven.local_block, seven.summary_block) == (7, -1)  # what is set stays
    for facts in ({}, {"whole_blocks": None}):
        assert InformedTokens().for_model(facts) == InformedTokens()
    with pytest.raises(ValueError, match=r"block -2 .* small windows"):
        vlmopt.optimize(model, InformedTokens(local_block=-2, summary_block=0))


def test_cautions_are_warnings():
    with pytest.warns(UserWarning, match=r"alpha=0\.7 is above 0\.6"):
        vlmopt.optimize(model_of(), InformedTokens(alpha=0.7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vlmopt.optimize(model_of(), InformedTokens(alpha=0.5))
