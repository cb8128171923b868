"""Where attention lies, told by layer: shares are those of the model's own matrices, and redistribution moves them."""

from __future__ import annotations

import copy

import pytest
import torch

import vlmopt
from tests.support.corrections import heads
from tests.support.families import FAMILIES, Image
from tests.support.massive import DIMS, SINK, planted, prompt
from tests.support.mechanism import forward
from vlmopt.analysis.attention_masses import KINDS, attention_masses
from vlmopt.analysis.prompt_profile import head_profile, profile_in, sink_look
from vlmopt.api import session_of
from vlmopt.attention_fix import HeadProfile, SinkProfile, VisionHeads, VisualSink
from vlmopt.calibration import Calibration
from vlmopt.checks import model_facts
from vlmopt.diagnose import diagnose_sinks
from vlmopt.pruning import Uniform
from vlmopt.runtime.structure import structure_of

OPEN = {"min_visual_mass": 0.0, "min_nonsink_ratio": 0.0, "min_nonsink_tokens": 1}
FIRST, LAST = 6, 21  # the visual tokens of `prompt`


def of_matrices(model, batch):
    """Per layer: mean over heads and question rows of the attention on the image, from the model's own matrices."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(**batch(), output_attentions=True, use_cache=False).attentions
    return [float(a[0, :, LAST + 1 :, FIRST : LAST + 1].sum(-1).mean()) for a in found]


def test_shares_are_those_of_the_attention_matrices():
    model, batch = planted(), prompt(0)
    found = attention_masses(model, batch())
    wanted = of_matrices(model, batch)
    assert [entry["layer"] for entry in found] == list(range(6))
    for entry, visual in zip(found, wanted, strict=True):
        assert set(entry["before"]) == set(KINDS)
        assert sum(entry["before"].values()) == pytest.approx(1, abs=1e-5)
        assert entry["before"]["other_visual"] == pytest.approx(visual, abs=1e-5)
        assert (entry["before"]["visual_sinks"], entry["after"], entry["edited"]) == (0, None, 0)
    assert session_of(model) is None


def test_sinks_are_told_apart_without_touching_anything():
    model, batch = planted(), prompt(0)
    sinks = VisualSink(dims=DIMS, tau=5.0)
    found = {entry["layer"]: entry for entry in attention_masses(model, batch(), sinks=sinks)}
    for layer, visual in enumerate(of_matrices(model, batch)):
        shares = found[layer]["before"]
        assert shares["visual_sinks"] + shares["other_visual"] == pytest.approx(visual, abs=1e-5)
        assert (shares["visual_sinks"] > 0.01) == (layer in (2, 3, 4))  # planted between these layers
        assert (shares["text_sinks"] > 0.01) == (layer in (2, 3, 4))  # the first token
        assert found[layer]["after"] is None


@pytest.mark.parametrize("recycle", [0.6, 1.0])
def test_redistribution_takes_from_sinks_what_it_gives(recycle):
    model, batch = planted(), prompt(0)
    policy = [VisualSink(dims=DIMS, tau=5.0, recycle=recycle, layers="3", **OPEN)]
    (entry,) = attention_masses(model, batch(), policy)
    before, after = entry["before"], entry["after"]
    assert (entry["layer"], entry["edited"]) == (3, 1.0)
    for kind in ("visual_sinks", "text_sinks"):
        assert after[kind] == pytest.approx((1 - recycle) * before[kind], abs=1e-6)
    given = recycle * (before["visual_sinks"] + before["text_sinks"])
    assert after["other_visual"] == pytest.approx(before["other_visual"] + given, abs=1e-5)
    assert after["other_text"] == pytest.approx(before["other_text"], abs=1e-6)


def test_pruning_of_the_policy_is_in_force():
    model, batch = planted(), prompt(0)
    found = attention_masses(model, batch(), [Uniform(keep_ratio=0.25, layer=2)])
    whole = attention_masses(model, batch())
    assert found[1]["before"] == pytest.approx(whole[1]["before"])
    assert found[2]["before"]["other_visual"] < whole[2]["before"]["other_visual"]


def test_sinks_come_with_cells_and_lifetimes():
    model, batch = planted(), prompt(0)
    found = diagnose_sinks(model, batch(), dims=DIMS, tau=5.0)
    cells = {token["place"]: token["cell"] for token in found.samples[0]["tokens"]}
    assert cells[SINK] == [0, 0, *divmod(SINK - FIRST, 4)]
    with vlmopt.optimized(model, vlmopt.Policy()):
        forward(model, batch)
        maps = vlmopt.report(model).maps()
    (layers,) = found.lifetimes(maps)
    assert (~layers.isnan()).nonzero()[:, 0].tolist() == [SINK - FIRST]
    assert float(layers[SINK - FIRST]) == 3


def test_one_look_takes_the_policys_dimensions_or_measures():
    model, batch = planted(), prompt(0)
    told: list[float] = []
    own = vlmopt.Policy(attention=[VisualSink(dims=DIMS, tau=5.0, **OPEN)])
    look = sink_look(model, batch(), own, progress=lambda done, text: told.append(done))
    assert look.reason is None
    assert look.sinks.samples[0]["visual"]["tokens"] == 1
    assert all(entry["after"] is not None for entry in look.masses)
    assert told == sorted(told)
    assert told
    measured = sink_look(model, batch(), vlmopt.Policy())
    calibration = Calibration(model, (), ("sinks",))
    calibration.look(batch())
    profile = calibration.sink_profile("")
    assert isinstance(profile, SinkProfile)
    assert measured.reason == profile.nothing
    assert all(entry["after"] is None for entry in measured.masses)


def test_heads_of_one_prompt_are_those_of_the_calibration():
    family = FAMILIES["qwen2_5_vl"]
    model, inputs = copy.deepcopy(family.build()), family.inputs([[5, Image(1), 7]])()
    found = head_profile(model, inputs)
    assert isinstance(found, HeadProfile)
    assert found.samples == 1
    masses = [sum(row) / len(row) for row in found.visual_mass]
    listened = [e["before"]["visual_sinks"] + e["before"]["other_visual"] for e in attention_masses(model, inputs)]
    assert masses == pytest.approx(listened, abs=1e-5)
    assert session_of(model) is None


def test_the_profile_of_a_policy_is_found():
    model = FAMILIES["llava"].build()
    profile = heads(model_facts(model, structure_of(model)))
    policy = vlmopt.Policy(attention=[VisualSink(dims=DIMS), VisionHeads(mode="static", profile=profile)])
    assert profile_in(policy) is profile
    assert profile_in(vlmopt.Policy(attention=[VisualSink(dims=DIMS)])) is None
