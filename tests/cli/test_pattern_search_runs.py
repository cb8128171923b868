"""Offline search over a model and its prompts: nothing changes, it goes on where it stopped, its files can be used."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image as PILImage

import vlmopt
from tests.support.families import FAMILIES, Image
from tests.support.mechanism import forward
from vlmopt.calibration import Profile
from vlmopt.checks import model_facts
from vlmopt.cli.main import main
from vlmopt.head_patterns import HeadPatterns
from vlmopt.kernels.patterns import AShape, DensePattern, VerticalSlash
from vlmopt.policy import Policy
from vlmopt.prefill import SparsePrefill
from vlmopt.reading import SparseReading
from vlmopt.runtime.structure import structure_of
from vlmopt.search import PatternSearch, candidates, watch
from vlmopt.search.layer import LayerSearch
from vlmopt.search.prompts import image_source, length, video_source

L, F = torch.tensor, torch.float64
SMALL = {"tile": 16, "run": 16}
FEW = [AShape(sink=16, local=32, **SMALL), AShape(sink=0, local=16, **SMALL), DensePattern(**SMALL)]
FEW += [VerticalSlash(vertical=30, slash=100, probe=16, **SMALL), AShape(sink=0, local=0, **SMALL)]
PROMPT = [[30, Image(0), 20]]


def facts_of(model):
    return model_facts(model, structure_of(model))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_watching_changes_nothing(name):
    family = FAMILIES[name]
    model, batch, seen = copy.deepcopy(family.build()), family.inputs(PROMPT), []
    plain = forward(model, batch)
    config = [module.config for module in structure_of(model).attentions]
    logits = []
    hook = model.register_forward_hook(lambda module, args, out: logits.append(out.logits[:, -1]))
    reasons = watch(model, batch(), seen.append, 2)
    hook.remove()
    assert torch.allclose(logits[0], plain[:, -1], atol=1e-5)
    assert torch.equal(forward(model, batch), plain)
    assert [module.config for module in structure_of(model).attentions] == config
    if name == "gemma3":  # images attend to themselves in both directions
        assert not seen
        assert any("not causal" in reason for reason in reasons)
        with pytest.raises(ValueError, match=r"no layer of .* can be searched: .*not causal"):
            PatternSearch(model, FEW).measure(0, batch(), lambda: None)
        return
    assert [shown.layer for shown in seen] == [2, 3, 4, 5]
    assert not reasons
    prefill = seen[0].prefill
    assert torch.equal(prefill.modality[0].bool(), batch.visual[0])
    assert prefill.v.shape == prefill.k.shape
    assert prefill.q.shape[1] == facts_of(model)["num_heads"]


def searched(model, batches, first=3, **given):
    search = PatternSearch(model, FEW, match="flops", dense_layers=first, **given)
    for show in (search.measure, search.compare):
        for number, batch in enumerate(batches):
            show(number, batch(), lambda: None)
    return search


def test_search_of_a_model_and_what_comes_of_it(tmp_path):
    family = FAMILIES["qwen2_5_vl"]
    model = copy.deepcopy(family.build())
    batches = [family.inputs(PROMPT), family.inputs([[90, Image(1), 40]], seed=1)]
    search = searched(model, batches)
    found = search.result("mine", {"tokens": [1]})
    assert found.layers[:3] == found.errors[:3] == (None,) * 3
    assert all(len(row) == 4 for row in found.layers[3:])
    assert all(ratio <= 1.1 for ratio in found.time_ratios)
    for layer_number in (3, 4, 5):
        sums = search.sums[layer_number]
        assert sums.prompts == sums.compared == sums.both == 2
        assert all(e <= r + 0.005 for e, r in zip(found.errors[layer_number], sums.errors[0, 0] / 2, strict=True))
    assert HeadPatterns.load(found.save(tmp_path / "p.json")) == found
    old = {key: value for key, value in found.to_dict().items() if key != "reuse"}
    assert HeadPatterns.from_dict(old) == replace(found, reuse=None)
    prefill = SparsePrefill(heads=found, min_len=1, dense_layers=0, dense_text=0, max_work=10)
    assert Policy.load(json.loads(Policy(prefill=prefill).to_json())).prefill == prefill
    with vlmopt.optimized(model, Policy(prefill=prefill)):
        forward(model, batches[1])
        ran = vlmopt.report(model).prefill
    assert [entry["layer"] for entry in ran] == [3, 4, 5]
    assert all(sum(entry["patterns"].values()) == 4 for entry in ran)
    with pytest.raises(ValueError, match="another model"):
        vlmopt.optimize(copy.deepcopy(FAMILIES["llava"].build()), Policy(prefill=prefill))


def test_the_search_finds_layers_that_may_reuse_a_choice(tmp_path):
    """Measured on the way; a policy that reads so decodes, and names the layers that the errors allow."""
    family = FAMILIES["qwen2_5_vl"]
    model = copy.deepcopy(family.build())
    batches = [family.inputs(PROMPT), family.inputs([[90, Image(1), 40]], seed=1)]
    whole = searched(model, batches, 1).result("mine", {})
    reuse = HeadPatterns.load(whole.save(tmp_path / "p.json")).reuse
    assert [len(own) for own in reuse.errors] == [0, 1, 2, 3, 4, 5]
    assert [own[0] for own in reuse.errors[1:]] == [None] * 5  # the first layer was not shown
    assert all(0 < error < 2 for own in reuse.errors[2:] for error in own[1:])
    assert reuse.samples == 2
    assert reuse.schedule(0) == set(range(6))
    assert reuse.schedule(10) == {0, 1}
    read = SparseReading(reuse=reuse, max_error=10, min_keys=1, least=8)
    with vlmopt.optimized(model, Policy(read=read)):
        model.generate(**batches[0](), max_new_tokens=3, do_sample=False)
        assert [entry["read"] < entry["keys"] for entry in vlmopt.report(model).read] == [False, *[True] * 4]
    with pytest.raises(ValueError, match="measured elsewhere"):
        vlmopt.optimize(copy.deepcopy(FAMILIES["llava"].build()), Policy(read=read))


def test_state_takes_up_where_it_was_left(monkeypatch):
    """Layers that were measured are not measured again, and the end is the same."""
    family = FAMILIES["llava"]
    model, batches = copy.deepcopy(family.build()), [family.inputs(PROMPT), family.inputs(PROMPT, seed=1)]
    whole = searched(model, batches, 4).result("mine", {})
    measure, left, states = LayerSearch.measure, [3], []

    def stop(self, given):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return measure(self, given)

    monkeypatch.setattr(LayerSearch, "measure", stop)
    search = PatternSearch(model, FEW, match="flops", dense_layers=4)
    search.measure(0, batches[0](), lambda: None)
    with pytest.raises(KeyboardInterrupt):
        search.measure(1, batches[1](), lambda: states.append(json.dumps(search.state())))
    assert len(states) == 1
    left[0] = 1
    again = searched(model, batches, 4, state=json.loads(states[0]))
    assert left[0] == 0
    assert again.result("mine", {}) == whole


def test_slow_candidates_are_left_out():
    """Matched by time, a cell costs what it took; candidates that were not timed cost what the reference does."""
    family = FAMILIES["llava"]
    model, batch = copy.deepcopy(family.build()), family.inputs(PROMPT)
    search = PatternSearch(model, FEW, dense_layers=5)
    search.measure(0, batch(), lambda: None)
    search = PatternSearch(model, FEW, dense_layers=5, state=search.state())
    for sums in search.sums.values():
        sums.seconds = sums.cells[0].sum(-1) * L([1.0, 3.0, torch.nan, 1.0, torch.nan], dtype=F)
    assert search.rates().tolist() == [1, 3, 1, 1, 1]
    sums = search.sums[5]
    sums.errors[:, 0], sums.errors[:, 1:] = 0.5, torch.inf
    sums.errors[:, 1] = 0.1
    sums.cells[:, :2] = L([100.0, 50.0], dtype=F)[:, None]
    sums.both = 0
    assert {head.pattern for head in search.chosen(5)} == {FEW[0]}
    search.match = "flops"
    assert {head.pattern for head in search.chosen(5)} == {FEW[1]}
    for wrong in ({"match": "luck"}, {"dense_layers": 6}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PatternSearch(model, FEW, **wrong)


@pytest.fixture(scope="module")
def loaded():
    return vlmopt.loading.load("tiny-qwen", device="cpu")


def test_prompts_have_the_wanted_length(loaded, tmp_path):
    video = video_source(loaded, "worlds", 1500, "What?").make(1)
    assert length(video) == pytest.approx(1500, rel=0.2)
    assert not torch.equal(
        video["pixel_values_videos"], video_source(loaded, "worlds", 1500, "What?").make(0)["pixel_values_videos"]
    )
    images = image_source(loaded, [], 900, "", 1).make(0)
    assert 900 <= length(images) < 1300
    starts = (images["input_ids"][0] == loaded.model.config.vision_start_token_id).nonzero()[:, 0]
    assert len(starts) >= 3
    assert bool((starts.diff() > 257).all()), "a text stands between images"
    files = [tmp_path / f"{n}.png" for n in range(3)]
    for n, file in enumerate(files):
        PILImage.new("RGB", (112, 112), (n, 0, 0)).save(file)
    assert length(image_source(loaded, files, 60, "What?", 2).make(1)) >= 60
    with pytest.raises(ValueError, match=r"1 images, all there are, makes a prompt of \d+ tokens, not of 500"):
        image_source(loaded, files, 500, "What?", 2).make(1)


COMMAND = ["search-patterns", "--images", "worlds", "--tokens", "250", "--dense-layers", "4", "--device", "cpu"]
COMMAND += ["--match", "flops"]


def test_command(loaded, tmp_path, capsys, monkeypatch):
    """Stopped in its third layer it goes on there; what it writes can be run, and put into a profile."""
    out, into = tmp_path / "patterns.json", tmp_path / "profile.json"
    Profile(facts_of(loaded.model), "nothing").save(into)
    command = [*COMMAND, "--samples", "2", "--out", str(out), "--into", str(into)]
    kept, count = LayerSearch.measure, [0]

    def stop(self: LayerSearch, given: Any) -> Any:
        if count[0] == 3:
            raise KeyboardInterrupt
        count[0] += 1
        return kept(self, given)

    monkeypatch.setattr(LayerSearch, "measure", stop)
    monkeypatch.setattr("vlmopt.cli.search_patterns.candidates", lambda *given: candidates(*given)[:3])
    assert main(command) == 130
    assert not out.exists()
    count[0] = 2
    assert main([*command, "--tokens", "300"]) == 2
    assert "another run" in capsys.readouterr().err
    assert main(command) == 0
    assert count[0] == 3
    said = capsys.readouterr().out
    assert "going on" in said
    assert "dense" in said
    assert "sparse reading within 2 %" in said
    assert not list(tmp_path.glob("*.part"))
    found = HeadPatterns.load(out)
    assert found.model["name_or_path"] == "tiny-qwen"
    assert len(found.calibration["tokens"]) == 2
    assert HeadPatterns.load(into) == found
    assert str(vlmopt.checkpoints.HERE) not in out.read_text()
    image = tmp_path / "a.png"
    PILImage.new("RGB", (112, 112)).save(image)
    run = ["run", "--image", str(image), "--question", "What?", "--policy", "dense", "--device", "cpu", "--out",
           str(tmp_path / "run"), "--repeats", "1", "--warmup", "0", "--max-new-tokens", "1"]  # fmt: skip
    assert main([*run, "--patterns", str(into)]) == 0
    used = json.loads((tmp_path / "run" / "result.json").read_text())["runs"]["optimized"]["report"]
    assert used["policy"]["prefill"]["heads"] == found.to_dict()
    other = replace(found, model={**found.model, "hidden_size": 7})
    assert main([*run, "--patterns", str(other.save(tmp_path / "other.json"))]) == 2
    assert "another model: hidden_size is 192, theirs is 7" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "said"), [
    ([], "give --video FILE or --images DIR"),
    (["--images", "nowhere"], "not a directory"),
    (["--video", "nowhere.mp4"], "video not found"),
    (["--images", "worlds", "--samples", "6"], "--samples must be 5 or fewer"),
    (["--images", "worlds", "--tokens", "0"], "--tokens must be 1 or more"),
    (["--images", "worlds", "--tile", "20"], "tile must be one of"),
    (["--images", "worlds", "--dense-layers", "6"], "dense_layers must be 0 to 5"),
], ids=str)  # fmt: skip
def test_refusals(words, said, tmp_path, capsys):
    assert main(["search-patterns", "--out", str(tmp_path / "p.json"), "--device", "cpu", *words]) == 2
    assert said in capsys.readouterr().err


def test_profile_of_another_model_is_refused_before_the_search(loaded, tmp_path, capsys):
    path = Profile({**facts_of(loaded.model), "layers": 7}, "nothing").save(tmp_path / "profile.json")
    assert main([*COMMAND, "--out", str(tmp_path / "p.json"), "--into", str(path)]) == 2
    assert "profile of another model: it differs in layers" in capsys.readouterr().err
    with pytest.raises(ValueError, match="this profile holds none"):
        HeadPatterns.load(path)
