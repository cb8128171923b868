"""Diagnosis of sinks: planted ones are listed with their lives and coordinates, and nothing changes, to the bit."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, GREEDY, Image
from tests.support.massive import DIMS, FAMILY, Plan, planted, prompt
from tests.support.mechanism import LOGITS, DropByOrdinal, forward
from vlmopt.api import session_of
from vlmopt.attention_fix import ImageBoost, SinkDiagnosis, SinkProfile, VisualSink
from vlmopt.pruning import FirstPass

# 12 layers: first token and token 8 behind layers 1 to 9, token 11 behind 3 to 8, token 14 behind 3 to 5
LIVES = {0: (1, 10), 8: (1, 10), 11: (3, 9), 14: (3, 6)}
PLAN = Plan(dict.fromkeys(LIVES, DIMS), LIVES)


def deep():
    return planted(PLAN, depth=12)


def found_by(model, batch, *policy, **settings):
    with vlmopt.optimized(model, [*policy, SinkDiagnosis(**settings)]):
        forward(model, batch)
        return next(c for c in vlmopt.report(model).corrections if c["method"] == "sink_diagnosis")["found"]


def lives(sample):
    return {
        token["place"]: (token["kind"], token["first_layer"], token["lifetime"], token["visual_sink_layers"])
        for token in sample["tokens"]
    }


WANTED = {8: ("primary", 1, 9, 9), 11: ("secondary", 3, 6, 6), 14: (None, 3, 3, 3)}  # the last for its visual sinks


def test_planted_sinks_are_listed():
    (sample,) = found_by(deep(), prompt(0), dims=DIMS, tau=5.0)
    assert (sample["first_token"], sample["band"]) == (0, [1, 10])
    assert lives(sample) == WANTED
    assert sample["levels"] == [{"first_layer": 3, "lifetime": 6, "tokens": 1}]
    assert {token["place"]: token["what"] for token in sample["tokens"]} == {
        8: "image 0 (row 0, column 2)", 11: "image 0 (row 1, column 1)", 14: "image 0 (row 2, column 0)"}  # fmt: skip
    visual = sample["visual"]
    assert visual["per_layer"] == {"2": 1, "3": 1, "4": 3, "5": 3, "6": 3, "7": 2, "8": 2, "9": 2, "10": 1}
    assert (visual["tokens"], visual["overlap"]) == (3, 1.0)
    assert visual["cosine"] == pytest.approx(1, abs=1e-3)
    assert "1 primary and 1 secondary sinks; 3 visual sinks in 9 layers, 100 %" in sample["summary"]


def test_layers_outside_are_not_searched():
    (sample,) = found_by(deep(), prompt(0), dims=DIMS, tau=5.0, layers="4:6")
    assert sample["visual"]["per_layer"] == {"4": 3, "5": 3}
    assert lives(sample)[8] == ("primary", 1, 9, 2)


def test_wrong_dimensions_are_in_doubt():
    """Tokens that stand out in other dimensions than the first token are unlike it."""
    (sample,) = found_by(planted(Plan({0: DIMS, 11: (9, 21)})), prompt(0), dims=(9, 21), tau=5.0)
    assert sample["visual"]["tokens"] == 1
    assert sample["visual"]["overlap"] == 0
    assert "in doubt" in sample["summary"]


def test_without_dimensions():
    (sample,) = found_by(deep(), prompt(0))
    assert sample["visual"] is None
    assert "vlmopt calibrate" in sample["summary"]
    assert lives(sample) == {8: ("primary", 1, 9, 0), 11: ("secondary", 3, 6, 0)}
    facts = {"model_type": "llava", "hidden_size": 64, "layers": 12}
    profile = SinkProfile(model=facts, samples=8, dims=(), tau=2.5)
    (sample,) = found_by(deep(), prompt(0), profile=profile)
    assert sample["visual"] == {"dims": [], "per_layer": {}, "tokens": 0, "overlap": None, "cosine": None}
    assert "no visual sinks by measurement" in sample["summary"]


def test_a_random_model_has_hardly_any_sinks():
    (sample,) = found_by(copy.deepcopy(FAMILY.build("sdpa")), prompt(0))
    assert len(sample["tokens"]) <= 1


def test_padded_batches_and_text():
    """Padding is not a token: places move with it, and nothing else; a sample of text alone has its own first token."""
    batch = FAMILY.inputs([[5, Image(0), 7], [40]])
    shift = int((~batch.real[0]).sum())
    assert shift
    plan = Plan({shift + place: DIMS for place in LIVES}, {shift + place: life for place, life in LIVES.items()})
    model = planted(plan, depth=12)
    first, second = found_by(model, batch, dims=DIMS, tau=5.0)
    assert first["first_token"] == shift
    assert lives(first) == {shift + place: life for place, life in WANTED.items()}
    assert all(token["what"] == "text" for token in second["tokens"])
    assert second["visual"]["tokens"] == 0


def test_pruned_tokens_keep_their_coordinates():
    """Visual tokens 1, 2, 4, 6, 7, 8, 11, 12 and 14 stay: those at 7, 11 and 12 of the stream were at 8, 14 and 17."""
    life = {0: (1, 10), 7: (1, 10), 11: (3, 9), 12: (3, 6)}
    model = planted(Plan(dict.fromkeys(life, DIMS), life), depth=12)
    drop = DropByOrdinal(digits="0146", keep_ratio=0.6, layer=0)
    (sample,) = found_by(model, prompt(0), drop, dims=DIMS, tau=5.0)
    assert lives(sample) == dict(zip((8, 14, 17), WANTED.values(), strict=True))
    assert sample["tokens"][1]["what"] == "image 0 (row 2, column 0)"
    late = DropByOrdinal(digits="4", keep_ratio=0.9, layer=7)  # visual token 3 is a sink until it is dropped
    life = {0: (1, 10), 8: (1, 6), 9: (1, 99)}
    (sample,) = found_by(planted(Plan(dict.fromkeys(life, DIMS), life), depth=12), prompt(0), late, dims=DIMS, tau=5.0)
    assert lives(sample) == {8: ("secondary", 1, 5, 5), 9: ("secondary", 1, 5, 5)}


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "qwen3_5"])
def test_every_bit_stays(name):
    if name not in FAMILIES:
        pytest.skip("not in this version of transformers")
    family = FAMILIES[name]
    batch, model = family.inputs([[5, Image(0), 7], [3, Image(1), 6]]), copy.deepcopy(family.build())
    options = {"max_new_tokens": 3, **GREEDY, **LOGITS}
    plain = model.generate(**batch(), **options)
    hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
    with vlmopt.optimized(model, SinkDiagnosis(dims=(3,))):
        out = model.generate(**batch(), **options)
        cached = vlmopt.report(model)
        model.generate(**batch(), **options, use_cache=False)
        uncached = vlmopt.report(model)
    assert torch.equal(torch.stack(out.logits), torch.stack(plain.logits))
    assert hooks == sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
    (entry,) = cached.corrections
    assert (entry["method"], entry["layers"], len(entry["found"])) == ("sink_diagnosis", [], 2)
    assert not cached.skipped
    assert json.loads(json.dumps(cached.to_dict())) == cached.to_dict()
    assert str(cached).count("found    sink_diagnosis, sample") == 2
    assert [s["first_token"] for s in uncached.corrections[0]["found"]] == [
        s["first_token"] for s in entry["found"]]  # fmt: skip


def test_next_to_corrections():
    """Marks of `visual_sink` are its own, and what it does is reported as ever."""
    batch, var = prompt(0), VisualSink(dims=DIMS, tau=5.0, min_nonsink_ratio=0.0, min_visual_mass=0.0, layers="0:")
    model = deep()
    with vlmopt.optimized(model, [var, ImageBoost()]):
        alone = forward(model, batch)
    with vlmopt.optimized(model, [SinkDiagnosis(dims=(5,), tau=1.0), var, ImageBoost()]):
        assert torch.equal(forward(model, batch), alone)
        report = vlmopt.report(model)
    assert [entry["method"] for entry in report.corrections] == ["sink_diagnosis", "visual_sink", "image_boost"]
    assert report.corrections[1]["found"] == []


def test_prompts_in_parts_are_reported():
    model, batch = copy.deepcopy(FAMILY.build("sdpa")), prompt(0)
    with vlmopt.optimized(model, SinkDiagnosis()):
        model.generate(**batch(), max_new_tokens=2, prefill_chunk_size=8, **GREEDY)
        report = vlmopt.report(model)
    assert {"what": "sink_diagnosis", "why": "the prompt came in parts, or over a cache that was filled before"} in (
        report.skipped
    )
    assert report.corrections[0]["found"] == []


def test_diagnose_sinks():
    model, batch = deep(), prompt(0)
    before = forward(model, batch)
    vlmopt.optimize(model, DropByOrdinal(digits="14", keep_ratio=0.8, layer=2))
    found = vlmopt.diagnose_sinks(model, batch(), dims=DIMS, tau=5.0)
    assert [m.name for m in session_of(model).policy.prune] == ["drop_by_ordinal"]
    vlmopt.restore(model)
    assert torch.equal(forward(model, batch), before)
    assert isinstance(found, vlmopt.SinkReport)
    assert found.layers == 12
    assert lives(found.samples[0]) == WANTED
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    table = str(found).splitlines()
    assert table[0].startswith("sample 0: first token at 0, massive behind layers 1 to 9;")
    assert " ".join(table[2].split()) == "8 image 0 (row 0, column 2) primary 9 layers from 1 9 layers"


def test_text_tokens_are_named():
    class Tokenizer:
        def decode(self, ids):
            return f"<{ids[0]}>"

    model, batch = planted(Plan({0: DIMS, 25: DIMS}, {0: (1, 5), 25: (1, 5)})), prompt(0)
    for tokenizer, name in ((None, f"token {batch.ids[0, 25]}"), (Tokenizer(), f"'<{batch.ids[0, 25]}>'")):
        (sample,) = vlmopt.diagnose_sinks(model, batch(), tokenizer=tokenizer).samples
        assert [(token["place"], token["what"], token["kind"]) for token in sample["tokens"]] == [(25, name, "primary")]


def test_settings_are_checked():
    facts = {"model_type": "llava", "hidden_size": 64, "layers": 6}
    profile = SinkProfile(model=facts, samples=8, dims=(3,), tau=2.5, band=(2, 5), first_layer=2)
    with pytest.raises(ValueError, match="give one or the other"):
        SinkDiagnosis(profile=profile, dims=(3,))
    model = copy.deepcopy(FAMILY.build("sdpa"))
    with pytest.raises(ValueError, match=r"distinct numbers in 0\.\.63"):
        vlmopt.diagnose_sinks(model, prompt(0)(), dims=(64,))
    with pytest.raises(ValueError, match="model_type is 'qwen2_5_vl'"):
        vlmopt.optimize(copy.deepcopy(FAMILIES["qwen2_5_vl"].build()), SinkDiagnosis(profile=profile))
    again = SinkDiagnosis(profile=profile.to_dict())
    assert vlmopt.Policy.load(json.loads(vlmopt.Policy(attention=[again]).to_json())).attention == (again,)


def test_a_first_pass_is_not_heard():
    family = FAMILIES["llava"]
    batch, model = family.inputs([[5, Image(0), 7]]), copy.deepcopy(family.build())
    with vlmopt.optimized(model, [FirstPass(keep_ratio=0.5), SinkDiagnosis(dims=(0,), tau=5.0)]):
        model.generate(**batch(), max_new_tokens=2, **GREEDY)
        report = vlmopt.report(model)
    assert "sink_diagnosis" not in {entry["what"] for entry in report.skipped}
    assert next(c for c in report.corrections if c["method"] == "sink_diagnosis")["found"]
