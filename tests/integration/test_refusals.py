"""Bad input gets a clear error before anything is changed."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import vlmopt
from tests.support.families import FAMILIES, Image
from tests.support.mechanism import DropByOrdinal, forward
from tests.support.snapshot import differences, snapshot
from tests.support.tiny import TEXT
from vlmopt import pruning


def refuse(model, policy, error=ValueError, match=None):
    before = snapshot(model)
    with pytest.raises(error, match=match) as caught:
        vlmopt.optimize(model, policy)
    assert differences(before, snapshot(model)) == []
    return str(caught.value)


@pytest.fixture
def llava():
    return copy.deepcopy(FAMILIES["llava"].build())


class NotAModel:
    pass


def test_things_that_are_no_vision_language_model():
    policy = [DropByOrdinal(keep_ratio=0.5)]
    with pytest.raises(TypeError, match="NotAModel"):
        vlmopt.optimize(NotAModel(), policy)
    refuse(nn.Linear(2, 2), policy, match="Linear.*decoder")
    text = LlamaForCausalLM(LlamaConfig(**TEXT))
    assert "llava" in refuse(text, policy, match="not a vision-language model")


@pytest.mark.parametrize(
    ("policy", "error", "match"),
    [
        ([DropByOrdinal(keep_ratio=0.5, layer=6)], ValueError, "layer=6.*0..5"),
        ([DropByOrdinal(keep_ratio=0.5, layer=99)], ValueError, "layer=99"),
        ("no_such_preset", ValueError, "no_such_preset"),
        (42, TypeError, "int"),
        (None, TypeError, "None"),
        ([DropByOrdinal(keep_ratio=0.5), "random"], (TypeError, ValueError), "random"),
        ({"format": 999, "prune": []}, ValueError, "pgrade"),
        ({"format": 1, "prune": [{"method": "no_such_method", "keep_ratio": 0.5}]}, ValueError, "no_such_method"),
        ({"format": 1, "prune": [{"method": "random", "keep_ratio": 0.5, "wrong": 1}]}, ValueError, "wrong"),
        ({"format": 1, "prune": [{"method": "random", "keep_ratio": 0}]}, ValueError, "keep_ratio"),
        ({"format": 1, "prune": [{"method": "random", "keep_ratio": "0.5"}]}, TypeError, "keep_ratio"),
        ({"format": 1, "prune": [{"method": "os.system", "keep_ratio": 0.5}]}, ValueError, "os.system"),
    ],
    ids=str,
)
def test_policies_that_cannot_work(llava, policy, error, match):
    refuse(llava, policy, error, match)


@pytest.mark.parametrize("value", [0, -0.1, 1.5, math.nan, math.inf, True, "half"], ids=str)
def test_keep_ratio_out_of_range(value):
    with pytest.raises((ValueError, TypeError), match="keep_ratio"):
        pruning.Random(keep_ratio=value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"keep_ratio": 0.5, "keep_tokens": 3},
        {"keep_tokens": 0},
        {"keep_tokens": 1.5},
        {"keep_ratio": 0.5, "layer": -1},
        {"keep_ratio": 0.5, "layer": True},
        {"keep_ratio": 0.5, "positions": "gaps"},
        {"keep_ratio": 0.5, "marker": "first"},
    ],
    ids=str,
)
def test_other_settings_out_of_range(settings):
    with pytest.raises((ValueError, TypeError)):
        pruning.Random(**settings)


@pytest.mark.parametrize(
    "methods",
    [
        [pruning.Random(keep_ratio=0.5), pruning.Uniform(keep_ratio=0.5)],  # two at one layer
        [pruning.Random(keep_ratio=0.5), pruning.Uniform(keep_ratio=0.7, layer=2)],  # grows with depth
        [
            pruning.Random(keep_ratio=0.5, positions="repack"),
            pruning.Uniform(keep_ratio=0.4, layer=2),
        ],  # mixed positions
    ],
    ids=["one_layer", "growing", "mixed_repack"],
)
def test_combinations_that_cannot_work(llava, methods):
    with pytest.raises(ValueError):
        vlmopt.Policy(prune=methods)
    refuse(llava, methods)


def test_policy_files(llava, tmp_path):
    refuse(llava, str(tmp_path / "missing.json"))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert "broken.json" in refuse(llava, str(broken))
    newer = tmp_path / "newer.json"
    newer.write_text(json.dumps({"format": 3, "vlmopt": "99.0", "prune": []}))
    assert "pgrade" in refuse(llava, str(newer))


@pytest.mark.parametrize("name", [n for n in ("qwen2_5_vl", "qwen3_vl") if n in FAMILIES])
def test_repack_on_multi_axis_positions(name):
    refuse(copy.deepcopy(FAMILIES[name].build()), [DropByOrdinal(keep_ratio=0.5, positions="repack")], match="repack")


def test_resize_where_the_tower_takes_one_size(llava):
    assert "qwen2_5_vl" in refuse(llava, [pruning.Resize(keep_ratio=0.5)], match="resize")


@pytest.mark.skipif("qwen3_5" not in FAMILIES, reason="family not in this release")
def test_attention_rows_of_a_recurrent_layer():
    model = copy.deepcopy(FAMILIES["qwen3_5"].build())
    assert "[1, 3, 5]" in refuse(model, [pruning.FastV(keep_ratio=0.5, layer=1)], match="layer 0")


@pytest.mark.skipif("gemma4" not in FAMILIES, reason="family not in this release")
def test_layers_behind_shared_keys():
    model = copy.deepcopy(FAMILIES["gemma4"].build())
    refuse(model, [DropByOrdinal(keep_ratio=0.5, layer=3)], match="layer <= 2")


@pytest.mark.parametrize("policy", [
    {"prune": [{"method": "fastv", "keep_ratio": 0.5, "layer": 1}]},
    {"attention": [{"method": "image_boost", "layers": "0:"}]},
    {"prefill": {"pattern": {"method": "a_shape"}, "min_len": 1, "dense_layers": 0}},
], ids=str)  # fmt: skip
def test_flex_attention_that_is_chosen_later_is_refused_by_the_call(policy):
    model = vlmopt.optimize(copy.deepcopy(FAMILIES["llava"].build()), policy)
    model.model.language_model.set_attn_implementation("flex_attention")
    refused = pytest.raises(ValueError, match="masks of type BlockMask cannot be cut; use attn_implementation='sdpa'")
    with torch.no_grad(), refused:
        model(**FAMILIES["llava"].inputs([[5, Image(0), 7]])())


def test_flex_attention_is_refused(llava):
    llava.model.language_model.config._attn_implementation_internal = "flex_attention"
    refuse(llava, [DropByOrdinal(keep_ratio=0.5)], match="flex_attention")


@pytest.mark.parametrize(
    "keep",
    [
        torch.tensor([2, 1]),
        torch.tensor([0, 0]),
        torch.tensor([99]),
        torch.tensor([0.5]),
        torch.tensor([], dtype=torch.long),
        torch.tensor([-1]),
    ],
    ids=str,
)
def test_a_selector_that_answers_nonsense_is_stopped(llava, keep, monkeypatch):
    monkeypatch.setattr(DropByOrdinal, "select", lambda self, tokens: pruning.Selection(keep))
    batch = FAMILIES["llava"].inputs([[5, Image(0), 3]])
    with (
        vlmopt.optimized(llava, [DropByOrdinal(keep_ratio=0.5)]) as model,
        pytest.raises(ValueError, match="drop_by_ordinal"),
    ):
        forward(model, batch)
