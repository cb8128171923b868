"""Trained scorers as files: saved and read, carried along by policies, refused where they do not belong."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

import vlmopt
from tests.support.families import FAMILIES, Image
from tests.support.untrained import WIDTH, marker
from tests.support.visual import scorer
from vlmopt import scorers
from vlmopt.api import session_of
from vlmopt.policy import Policy
from vlmopt.pruning import FocusUI, Uniform
from vlmopt.scorers import FILES, TrainedScorer, facts

FAMILY = FAMILIES["qwen2_5_vl"]
NOTES = {"data": "worlds", "steps": 3}


def trained(model, seed=0, /, **changes):
    return dataclasses.replace(TrainedScorer(scorer(WIDTH, seed=seed), marker(), facts(model), NOTES), **changes)


@pytest.fixture
def model():
    return copy.deepcopy(FAMILY.build("sdpa"))


def kept(model, policy):
    with torch.no_grad(), vlmopt.optimized(model, policy):
        model(**FAMILY.inputs([[5, Image(0), 7]])())
        return vlmopt.report(model).maps(0)[0]


def methods_of(source):
    """One that is scored by, and one that borrows the marker of, a source."""
    return [
        FocusUI(keep_ratio=0.3, scorer=source),
        Uniform(keep_ratio=0.3, positions="pospad", marker="trained", marker_from=source),
    ]


def test_saved_and_read_again(model, tmp_path):
    one = trained(model)
    folder = scorers.save(one, tmp_path / "new" / "scorer")
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    again = scorers.load(str(folder))
    assert not again.scorer.training
    assert not any(p.requires_grad for p in again.scorer.parameters())
    assert {n: v.tolist() for n, v in again.scorer.state_dict().items()} == {
        n: v.tolist() for n, v in one.scorer.state_dict().items()
    }
    assert torch.equal(again.marker, one.marker)
    assert (again.model, again.trained_with) == (one.model, NOTES)
    assert (again.scorer.heads, again.scorer.pooling) == (4, "mean")
    half = dataclasses.replace(one, scorer=scorer(WIDTH).bfloat16(), marker=None)
    again = scorers.load(str(scorers.save(half, tmp_path / "half")))
    assert again.marker is None
    assert again.scorer.visual.up.weight.dtype == torch.bfloat16


def test_the_saved_scorer_decides(model, tmp_path):
    maps = []
    for seed in (0, 1):
        source = str(scorers.save(trained(model, seed), tmp_path / str(seed)))
        maps.append(kept(model, FocusUI(keep_ratio=0.3, scorer=source)))
        assert int(maps[-1].kept.sum()) == 5
        assert maps[-1].scores.abs().max() <= 1
    assert not torch.equal(maps[0].kept, maps[1].kept)


@pytest.mark.parametrize("method", [0, 1])
def test_a_policy_takes_its_scorer_along(model, tmp_path, method):
    source = scorers.save(trained(model), tmp_path / "trained")
    policy = Policy(prune=[methods_of(str(source))[method]], seed=3)
    path = policy.save_pretrained(tmp_path / "policy")
    (entry,) = json.loads(path.read_text())["prune"]
    assert "./scorer" in entry.values()
    expected = kept(model, policy).kept
    shutil.rmtree(source)
    moved = shutil.move(path.parent, tmp_path / "elsewhere")
    for name in (moved, f"{moved}/{path.name}"):
        again = Policy.load(str(name))
        assert torch.equal(kept(model, again).kept, expected)
    again.save_pretrained(moved)  # where it is already
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == ["scorer", path.name]
    again.save_pretrained(tmp_path / "third")
    assert torch.equal(kept(model, Policy.load(tmp_path / "third")).kept, expected)


def test_two_scorers_in_one_policy(model, tmp_path):
    one, two = (str(scorers.save(trained(model, seed), tmp_path / f"{seed}")) for seed in (0, 1))
    policy = Policy(prune=[FocusUI(keep_ratio=0.3, scorer=one, marker_from=two)])
    policy.save_pretrained(tmp_path / "policy")
    (again,) = Policy.load(tmp_path / "policy").prune
    for ours, theirs in ((again.scorer, one), (again.marker_from, two)):
        assert ours != theirs
        assert json.dumps(load_file(f"{ours}/{FILES[1]}")["scorer.visual.up.bias"].tolist()) == json.dumps(
            load_file(f"{theirs}/{FILES[1]}")["scorer.visual.up.bias"].tolist()
        )
    same = Policy(prune=[dataclasses.replace(policy.prune[0], marker_from=one)])
    same.save_pretrained(tmp_path / "same")
    assert len(list((tmp_path / "same").iterdir())) == 2, "one copy serves both"


def test_names_that_mean_the_same_everywhere_stay(tmp_path):
    policy = Policy(prune=[FocusUI(keep_ratio=0.3, scorer="user/scorer")])
    policy.save_pretrained(tmp_path)
    assert Policy.load(tmp_path) == policy
    assert len(list(tmp_path.iterdir())) == 1


def test_a_policy_file_does_not_reach_out_of_its_directory(tmp_path):
    file = tmp_path / "vlmopt_policy.json"
    file.write_text(json.dumps({"prune": [{"method": "focus_ui", "keep_ratio": 0.3, "scorer": "./../secret"}]}))
    with pytest.raises(ValueError, match=r"vlmopt_policy\.json.*leaves the policy's directory"):
        Policy.load(tmp_path)


class Hub:
    """Stands in for `HfApi` and `hf_hub_download`."""

    def __init__(self, root):
        self.root = root

    def __call__(self, token=None):
        return self

    def create_repo(self, repo_id, private, exist_ok):
        return types.SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id, folder_path, **commit):
        shutil.copytree(folder_path, self.root / repo_id)
        return f"https://hub/{repo_id}"

    def download(self, repo_id, filename, **options):
        path = self.root / repo_id / filename
        if not path.exists():
            raise OSError("404")
        cached = self.root / "cache" / repo_id / filename  # a file is there once it was asked for
        cached.parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copyfile(path, cached))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import huggingface_hub

    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    return hub


def test_from_the_hub(model, tmp_path, hub):
    one = trained(model)
    source = str(scorers.save(one, tmp_path / "trained"))
    expected = kept(model, FocusUI(keep_ratio=0.3, scorer=source)).kept
    assert scorers.push_to_hub(one, "user/scorer", private=True) == "https://hub/user/scorer"
    assert torch.equal(kept(model, FocusUI(keep_ratio=0.3, scorer="user/scorer")).kept, expected)
    assert Policy(prune=[FocusUI(keep_ratio=0.3, scorer=source)]).push_to_hub("user/policy")
    shutil.rmtree(source)
    assert torch.equal(kept(model, Policy.from_pretrained("user/policy")).kept, expected)
    (hub.root / "user" / "policy" / "scorer" / FILES[1]).unlink()
    shutil.rmtree(hub.root / "cache")
    with pytest.raises(ValueError, match=r"focus_ui\.safetensors cannot be had from the Hub"):
        Policy.from_pretrained("user/policy")


@pytest.mark.parametrize("method", [0, 1])
def test_a_scorer_of_another_model_is_refused_before_anything_changes(model, tmp_path, method):
    other = copy.deepcopy(FAMILIES["qwen2_vl"].build("sdpa"))
    retrained = copy.deepcopy(model)
    with torch.no_grad():
        retrained.get_input_embeddings().weight.mul_(1.1)
    for strange, match in (
        (trained(other), "trained for model_type='qwen2_vl', this model has 'qwen2_5_vl'"),
        (trained(model, model={**facts(model), "hidden_size": 96}), "hidden_size=96, this model has 64"),
        (trained(retrained), "word embeddings differ"),
        (trained(model, model={**facts(model), "fingerprint": [0.1] * 63 + [1e30]}), "word embeddings differ"),
    ):
        source = str(scorers.save(strange, tmp_path / "strange"))
        with pytest.raises(ValueError, match=match):
            vlmopt.optimize(model, methods_of(source)[method])
        assert session_of(model) is None
    source = str(scorers.save(trained(model), tmp_path / "own"))
    vlmopt.optimize(model.bfloat16(), methods_of(source)[method])  # rounding is no retraining


def test_a_marker_that_is_not_there(model, tmp_path):
    source = str(scorers.save(trained(model, marker=None), tmp_path))
    for method in methods_of(source):
        with pytest.raises(ValueError, match="without a trained marker; use marker='mean'"):
            vlmopt.optimize(model, method)
    vlmopt.optimize(model, dataclasses.replace(methods_of(source)[0], marker="mean"))


def test_files_that_are_no_scorer(model, tmp_path):
    with pytest.raises(ValueError, match=r"must hold focus_ui\.json and focus_ui\.safetensors"):
        scorers.load(str(tmp_path))
    with pytest.raises(ValueError, match="is not a directory, nor bundled"):
        scorers.load("no/such")
    folder = scorers.save(trained(model), tmp_path / "s")
    config = json.loads((folder / FILES[0]).read_text())
    blurred = {**config["model"], "fingerprint": [1e999] * len(config["model"]["fingerprint"])}
    for change in ({"format": 9}, {"heads": 5}, {"dim": 32}, {"dim": 2**40}, {"model": {}}, {"model": blurred}):
        (folder / FILES[0]).write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match="cannot be read"):
            scorers.load(str(folder))
    (folder / FILES[0]).write_text(json.dumps(config))
    tensors = load_file(folder / FILES[1])
    for name, damage in (("marker", marker() * torch.nan), ("scorer.visual.up.bias", torch.full((WIDTH,), torch.inf))):
        save_file({**tensors, name: damage}, folder / FILES[1])
        with pytest.raises(ValueError, match=f"not all numbers are finite in {name}"):
            scorers.load(str(folder))
    save_file({**tensors, "marker": marker(WIDTH + 1)}, folder / FILES[1])
    with pytest.raises(ValueError, match="the marker must have the width 64"):
        scorers.load(str(folder))
    save_file({name: value for name, value in tensors.items() if "norm" not in name}, folder / FILES[1])
    with pytest.raises(ValueError, match=r"(?s)cannot be read.*norm"):
        scorers.load(str(folder))
    (folder / FILES[1]).write_bytes(b"\x80\x04K.")  # a pickle
    with pytest.raises(ValueError, match="cannot be read"):
        scorers.load(str(folder))


def test_a_fingerprint_that_is_no_number_belongs_to_no_model(model):
    own = facts(model)
    for strange in ({**own, "fingerprint": [float("nan")] * 64}, {**own, "fingerprint": [float("inf")] * 64}):
        for trained_for, here in ((strange, own), (own, strange)):
            with pytest.raises(ValueError, match="word embeddings differ"):
                trained(model, model=trained_for).check("x", here, marker=False)
