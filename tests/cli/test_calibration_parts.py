"""The whole calibration: parts, one file, interruption, what a profile fills in and where it is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch

import vlmopt
from tests.support.close import assert_same
from tests.support.families import FAMILIES, Image
from tests.support.massive import DIMS, planted, prompt
from tests.support.mechanism import forward
from vlmopt.api import session_of
from vlmopt.attention_fix import HeadGain, VisionHeads, VisualSink
from vlmopt.calibration import PARTS, Calibration, Profile
from vlmopt.cli.main import main
from vlmopt.pruning import FastV


def calibrated(model: Any, count: int = 3, parts: Any = PARTS, state: Any = None) -> Calibration:
    run = Calibration(model, [FastV(keep_ratio=0.5, layer=2)], parts, state)
    first, total = run.plan(count)
    for seed in range(run.looked, first):
        run.look(prompt(seed)())
    for seed in range(run.seen, total):
        run.add(prompt(seed)())
    return run


def test_one_file_holds_everything(tmp_path):
    model = planted()
    profile = calibrated(model).profile("mine", "three images")
    path = profile.save(tmp_path / "profile.json")
    again = Profile.load(path)
    assert again == profile
    assert (again.sinks.dims, again.heads.samples, len(again.debias), again.prefill) == (DIMS, 3, 2, None)
    masses, without = (torch.tensor(table) for table in (again.heads.visual_mass, again.heads.nonsink_mass))
    assert (masses - without)[2:5].mean() > 0.1  # sinks of the first look
    policy = vlmopt.Policy.load([FastV(keep_ratio=0.5, layer=2), VisualSink(recycle=0.5)])
    (method,) = again.apply(policy).attention
    assert method == VisualSink(recycle=0.5, profile=again.sinks)
    with vlmopt.optimized(model, again.apply(policy)):
        forward(model, prompt(0))
        (entry,) = vlmopt.report(model).corrections
    assert "sink profile of mine, 3 samples" in entry["source"]
    assert any(layer["visual_sinks"] for layer in entry["layers"])
    with vlmopt.optimized(model, [HeadGain(profile=again.heads), VisionHeads(mode="static", profile=again.heads)]):
        forward(model, prompt(0))


def test_what_is_given_stays():
    profile = calibrated(planted()).profile("mine", "")
    own = [VisualSink(dims=(5,)), VisualSink(profile=replace(profile.sinks, dims=(9,)))]
    for method in own:
        assert profile.apply(vlmopt.Policy(attention=[method])).attention == (method,)
    (method,) = profile.apply(vlmopt.Policy(attention=[VisualSink(tau=1.5)])).attention
    assert (method.profile.tau, method.profile.dims, method.tau) == (1.5, DIMS, None)
    without = replace(profile, sinks=None, debias=())
    policy = vlmopt.Policy.load([FastV(keep_ratio=0.5, layer=2), VisualSink()])
    assert without.apply(policy) == policy


def test_an_interrupted_calibration_goes_on():
    model = planted()
    once = calibrated(model).profile("mine", "")
    for looked, seen in ((2, 0), (3, 2)):
        run = Calibration(model, [FastV(keep_ratio=0.5, layer=2)])
        for seed in range(looked):
            run.look(prompt(seed)())
        for seed in range(seen):
            run.add(prompt(seed)())
        state = json.loads(json.dumps(run.state()))
        assert_same(calibrated(model, state=state).profile("mine", "").to_dict(), once.to_dict())


def test_parts():
    model = planted()
    assert calibrated(model, parts=["sinks"]).plan(40) == (16, 0)
    assert calibrated(model, parts=["debias"]).plan(40) == (0, 40)
    only = calibrated(model, parts=["sinks"]).profile("mine", "")
    assert (only.debias, only.heads, only.sinks.dims) == ((), None, DIMS)
    only = calibrated(model, parts=["heads"]).profile("mine", "")
    assert (only.debias, only.heads.samples, only.sinks.dims) == ((), 3, DIMS)
    with pytest.raises(ValueError, match="parts must be some of debias, sinks, heads, got other"):
        Calibration(model, [], ["other"])
    with pytest.raises(ValueError, match="no image reached"):
        Calibration(model, [], ["sinks"]).profile("mine", "")
    sinks, debias = Calibration(model, [], ["sinks"]), Calibration(model, [FastV(keep_ratio=0.5, layer=2)], ["debias"])
    for ask in (lambda: debias.look({}), lambda: debias.sink_profile(""), lambda: sinks.add({})):
        with pytest.raises(ValueError, match="asked for"):
            ask()
    with pytest.raises(ValueError, match="heads were not asked for"):
        sinks.head_profile("")


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "qwen3_vl", "internvl", "idefics3"])
def test_families(name):
    family = FAMILIES[name]
    model, batch = copy.deepcopy(family.build()), family.inputs([[5, Image(0), 7]])
    dense = forward(model, batch)
    run = Calibration(model, [], ["heads"])
    run.look(batch())
    run.add(batch())
    assert torch.equal(forward(model, batch), dense)
    found = run.profile("mine", "")
    assert found.sinks.nothing is not None
    masses = torch.tensor(found.heads.visual_mass)
    assert masses.shape == (6, 4)
    assert masses.min() > 0


@pytest.mark.skipif("qwen3_5" not in FAMILIES, reason="not in this version of transformers")
def test_a_model_whose_attention_cannot_be_read():
    model = copy.deepcopy(FAMILIES["qwen3_5"].build())
    with pytest.raises(ValueError, match="attention of no layer can be read"):
        Calibration(model, [], ["sinks"])


def test_profiles_of_another_model_are_refused():
    profile = calibrated(planted()).profile("mine", "")
    other = copy.deepcopy(FAMILIES["qwen2_5_vl"].build())
    for method in (VisualSink(profile=profile.sinks), HeadGain(profile=profile.heads)):
        with pytest.raises(ValueError, match="model_type is 'qwen2_5_vl', the profile's is 'llava'"):
            vlmopt.optimize(other, method)
    deeper = planted(depth=7)
    with pytest.raises(ValueError, match="layers is 7, the profile's is 6"):
        vlmopt.optimize(deeper, VisualSink(profile=profile.sinks))
    with pytest.raises(ValueError, match="6 layers of 4 heads"):
        replace(profile.heads, visual_mass=profile.heads.visual_mass[:3])
    assert session_of(other) is None


def test_files_of_the_first_format(tmp_path):
    profile = calibrated(planted(), parts=["debias"]).profile("mine", "three")
    data = profile.to_dict()
    assert (data["format"], data["sinks"], data["heads"], data["prefill"]) == (2, None, None, None)
    old = {name: data[name] for name in ("vlmopt", "model", "data", "debias")} | {"format": 1}
    path = tmp_path / "p.json"
    path.write_text(json.dumps(old))
    assert Profile.load(path) == profile
    changes = ({"format": 2}, {"format": 3}, {"sinks": None})
    for wrong in (*(old | change for change in changes), data | {"extra": 1}, data | {"sinks": {}}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"p\.json"):
            Profile.load(path)


# ---------------------------------------------------------------- the command
def test_command(tmp_path, capsys):
    out = tmp_path / "profile.json"
    assert main(["calibrate", "--images", "worlds", "--samples", "4", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for words in ("sinks    none: ", "heads    ", "rank correlation", "two halves", "warning  sinks: 4 images are"):
        assert words in said
    found = Profile.load(out)
    assert found.sinks.samples == found.heads.samples == 4
    assert found.sinks.stats["texts"] == 4  # every image has a question of its own
    policy = found.apply(vlmopt.Policy.load(VisualSink()))
    model, _ = vlmopt.load_checkpoint("tiny-qwen")
    with pytest.warns(UserWarning, match="visual_sink changes nothing: the model has no visual sinks"):
        vlmopt.optimize(model, policy)


def test_command_measures_a_part(tmp_path, capsys):
    out = tmp_path / "profile.json"
    command = ["calibrate", "--images", "worlds", "--samples", "2", "--out", str(out), "--only", "sinks"]
    assert main(command) == 0
    assert Profile.load(out).heads is None
    assert "host" not in capsys.readouterr().out
    assert main([*command, "--host", "fastv:2"]) == 2
    assert "--only debias" in capsys.readouterr().err
