"""Policies: what they accept, what they refuse, and that they survive a round trip; methods by name and entry point."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import types
from dataclasses import dataclass

import pytest

from tests.support.selectors import SETTINGS
from vlmopt import attention_fix, hub, methods, pruning
from vlmopt.attention_fix import Correction
from vlmopt.core.settings import setting
from vlmopt.decoding import VCD, LocalContrast, Plausibility
from vlmopt.kv import SnapKV
from vlmopt.policy import Policy
from vlmopt.policy.files import FILE_NAME
from vlmopt.policy.presets import presets
from vlmopt.pruning import FastV, Random, Resize, Selection, Selector, Uniform
from vlmopt.version import __version__

PRESETS = {"dense", "random-25", "uniform-25", "uniform-50", "resize-25", "attention-25"}
PRESETS |= {"sinks", "describe", "boost", "truer-25", "long-video", "small-cache"}
PRESETS |= {"pospad-30", "progressive", "contrast", "debiased-25", "zeroth-order-25", "video-25"}
PRESETS |= {"balanced", "gentle", "aggressive", "question-25", "screens", "screens-30"}


@dataclass(frozen=True, kw_only=True)
class Host(Selector):
    """Holds another method and a list: shapes of settings that later methods will have."""

    name = "test_host"
    host: Selector | None = None
    sizes: tuple[int, ...] = ()

    def pick(self, tokens, k):
        return Selection(tokens.ordinal)


@dataclass(frozen=True, kw_only=True)
class Gain(Correction):
    """Scales nothing."""

    name = "test_gain"
    gain: float = 1.0

    @property
    def is_identity(self):
        return self.gain == 1.0


@pytest.fixture
def extra(monkeypatch):
    """`Host` and `Gain` are registered for one test."""
    monkeypatch.setitem(pruning.registry._methods, Host.name, Host)
    monkeypatch.setitem(attention_fix.registry._methods, Gain.name, Gain)


# ---- presets and loading


def test_presets():
    assert set(presets()) == PRESETS
    assert presets()["dense"] == Policy()
    assert presets() is not presets()
    for name, policy in presets().items():
        assert Policy.load(name) == policy
        assert Policy.load(policy) is policy
        assert all(method.layer < 6 for method in policy.prune)  # the bundled model has six layers


@pytest.mark.parametrize("policy", presets().values(), ids=presets())
def test_presets_round_trip(policy, tmp_path):
    assert Policy.load(policy.to_dict()) == policy
    assert Policy.load(json.loads(policy.to_json())) == policy
    path = policy.save_pretrained(tmp_path / "new" / "folder")
    assert path.name == FILE_NAME == "vlmopt_policy.json"
    for source in (path, str(path), path.parent, str(path.parent)):
        assert Policy.load(source) == policy
    assert Policy.from_pretrained(path.parent) == policy
    assert hash(Policy.load(path)) == hash(policy)
    assert pickle.loads(pickle.dumps(policy)) == policy


@pytest.mark.parametrize("method", SETTINGS.values(), ids=SETTINGS)
def test_every_method_round_trips(method):
    assert methods.build(methods.to_dict(method)) == method
    assert methods.build(json.loads(json.dumps(methods.to_dict(method)))) == method
    assert Policy.load(method) == Policy.load([method]) == Policy(prune=[method])
    assert Policy.load(methods.to_dict(method)) == Policy(prune=[method])


def test_json_holds_only_what_differs_from_the_defaults():
    policy = Policy(prune=[Uniform(keep_ratio=0.25)], seed=3)
    assert policy.to_dict() == {
        "format": 2, "vlmopt": __version__, "prune": [{"method": "uniform", "keep_ratio": 0.25}],
        "attention": [], "prefill": None, "kv": None, "read": None, "decoding": [], "gqa": "auto", "seed": 3,
    }  # fmt: skip
    assert json.loads(policy.to_json()) == policy.to_dict()
    assert methods.to_dict(FastV(keep_tokens=4)) == {"method": "fastv", "keep_tokens": 4}


def test_dicts_may_be_partial():
    assert Policy.load({}) == Policy()
    assert Policy.load({"prune": [{"method": "random", "keep_ratio": 1}]}).prune[0].is_identity
    assert Policy.load([{"method": "random", "keep_ratio": 0.5}, Uniform(keep_ratio=0.2, layer=3)]).prune[1].layer == 3


def test_nested_methods_and_lists_round_trip(extra):
    host = Host(keep_ratio=0.5, host=Uniform(keep_ratio=0.5), sizes=(1, 2))
    data = methods.to_dict(host)
    assert data == {
        "method": "test_host", "keep_ratio": 0.5, "host": {"method": "uniform", "keep_ratio": 0.5}, "sizes": [1, 2],
    }  # fmt: skip
    assert methods.build(json.loads(json.dumps(data))) == host


def test_corrections(extra):
    policy = Policy.load([Gain(gain=2.0), Uniform(keep_ratio=0.5)])
    assert policy == Policy(prune=[Uniform(keep_ratio=0.5)], attention=[Gain(gain=2.0)])
    assert policy.to_dict()["attention"] == [{"method": "test_gain", "gain": 2.0}]
    assert Policy.load(policy.to_dict()) == policy
    with pytest.raises(TypeError, match="attention may hold Corrections"):
        Policy(attention=[Uniform(keep_ratio=0.5)])
    with pytest.raises(TypeError, match="prune may hold Selectors"):
        Policy(prune=[Gain()])
    with pytest.raises(TypeError, match="Correction"):
        attention_fix.register("fine")(Uniform)
    with pytest.raises(ValueError, match="taken"):
        attention_fix.register("test_gain")(Gain)
    with pytest.raises(ValueError, match="must be lower case"):
        attention_fix.register("Bad Name")(Gain)


def test_evictions():
    policy = Policy.load([SnapKV(keep_ratio=0.1), Uniform(keep_ratio=0.5)])
    assert policy == Policy(prune=[Uniform(keep_ratio=0.5)], kv=SnapKV(keep_ratio=0.1))
    assert policy.to_dict()["kv"] == {"method": "snap_kv", "keep_ratio": 0.1}
    assert Policy.load(policy.to_dict()) == policy == Policy.load("uniform:keep_ratio=0.5+snap_kv:keep_ratio=0.1")
    assert Policy.load(SnapKV()) == Policy(kv=SnapKV()) == Policy(kv={"method": "snap_kv"})
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_steps_of_decoding():
    policy = Policy.load([VCD(t=900), Uniform(keep_ratio=0.5), Plausibility()])
    assert policy == Policy(prune=[Uniform(keep_ratio=0.5)], decoding=[VCD(t=900), Plausibility()])
    assert policy.to_dict()["decoding"] == [{"method": "vcd", "t": 900}, {"method": "plausibility"}]
    assert Policy.load(policy.to_dict()) == policy == Policy.load("uniform:keep_ratio=0.5+vcd:t=900+plausibility")
    assert policy.steps == [*policy.decoding]
    assert Policy(decoding=[VCD(alpha=0)]).steps == []
    assert not Policy(decoding=[VCD(alpha=0)]).changes
    masked = LocalContrast(mask=abs)
    assert Policy(decoding=[masked]).to_dict()["decoding"] == [{"method": "local_contrast"}]
    with pytest.raises(ValueError, match="mask"):
        Policy.load({"method": "local_contrast", "mask": 1})
    with pytest.raises(TypeError, match="decoding may hold Decodings"):
        Policy(decoding=[Uniform(keep_ratio=0.5)])


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("vcd+blank_contrast", "vcd and blank_contrast are both a kind of contrast"),
        ("deco+dola", "both a kind of early exit"),
        ("vcd+vcd", "vcd is given twice"),
        ("text_contrast+image_boost:gamma=1.1", r"image_boost \(gamma=1.1\) are both a kind of contrast"),
        ("vcd+key_diff", "vcd and key_diff exclude each other.*take text_contrast"),
        ("vcd+vision_zip:keep_ratio=0.5", "vision_zip writes merged tokens"),
        ("blank_contrast+pixel_redundancy", "pixel_redundancy chooses by pixels"),
    ],
)
def test_steps_of_decoding_that_contradict(line, match):
    with pytest.raises(ValueError, match=match):
        Policy.load(line)
    for alone in line.split("+"):
        Policy.load(alone)


def test_files_of_the_format_before_are_read():
    old = {"format": 1, "vlmopt": "0.9", "prune": [{"method": "uniform", "keep_ratio": 0.25}], "attention": []}
    assert Policy.load(old | {"prefill": None, "seed": 3}) == Policy(prune=[Uniform(keep_ratio=0.25)], seed=3)


def test_a_correction_of_rows_needs_one_set_of_keys_per_layer():
    boost = methods.build({"method": "image_boost"})
    with pytest.raises(ValueError, match=r"image_boost has to know.*give snap_kv per_head=False"):
        Policy(attention=[boost], kv=SnapKV())
    assert Policy(attention=[boost], kv=SnapKV(per_head=False)).kv is not None
    assert Policy(attention=[boost], kv=SnapKV(keep_ratio=1)).kv is not None


def test_stored_sorted_and_frozen():
    late, early = Uniform(keep_ratio=0.2, layer=4), Random(keep_ratio=0.5, layer=1)
    policy = Policy(prune=[late, early])
    assert policy.prune == (early, late)
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.seed = 1


# ---- refusals


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        (42, TypeError, "int"),
        (None, TypeError, "NoneType"),
        (Uniform, TypeError, "type"),
        (
            "unform-25",
            ValueError,
            r"unform-25.*did you mean 'uniform-25'.*presets: aggressive, attention-25, balanced, boost",
        ),
        ("", ValueError, "unknown preset"),
        ("no/such/file", ValueError, "no policy file"),
        ("policy.json", ValueError, "no policy file"),
        (["random"], TypeError, "'random' of type str"),
        ([Policy()], TypeError, "Policy"),
        ([{"keep_ratio": 0.5}], ValueError, "'method' is missing"),
        ({"format": 3}, ValueError, "[Uu]pgrade"),
        ({"format": 7, "vlmopt": "9.1", "new_key": 1}, ValueError, "written by vlmopt 9.1"),
        ({"format": "1"}, ValueError, "format"),
        ({"format": True}, ValueError, "format"),
        ({"format": 0}, ValueError, "format"),
        ({"prun": []}, ValueError, "'prun'.*did you mean 'prune'"),
        ({"prune": {"method": "random"}}, TypeError, "prune must be a list"),
        ({"prune": "random"}, TypeError, "prune must be a list"),
        ({"prune": None}, TypeError, "prune must be a list"),
        ({"prune": ["random"]}, TypeError, "'random' of type str"),
        ({"prune": [{"method": "unifrm", "keep_ratio": 0.5}]}, ValueError, r"unifrm.*did you mean 'uniform'"),
        ({"prune": [{"method": "os.system"}]}, ValueError, "unknown method 'os.system'"),
        ({"prune": [{"method": ["random"]}]}, TypeError, "name must be a string"),
        ({"prune": [{"method": None}]}, TypeError, "name must be a string"),
        ({"prune": [{"method": "random", "keep_rato": 0.5}]}, ValueError, r"keep_rato.*did you mean 'keep_ratio'"),
        ({"prune": [{"method": "random", "name": "x", "keep_ratio": 0.5}]}, ValueError, "unknown setting 'name'"),
        ({"prune": [{"method": "random", "keep_ratio": float("nan")}]}, ValueError, "nan"),
        ({"prune": [{"method": "random", "keep_ratio": [0.5]}]}, TypeError, "keep_ratio"),
        ({"prune": [{"method": "random"}]}, ValueError, "exactly one"),
        ({"attention": [{"method": "random", "keep_ratio": 0.5}]}, TypeError, "attention may hold Corrections"),
        ({"prefill": {"method": "random", "keep_ratio": 0.5}}, TypeError, "prefill"),
        ({"kv": {"method": "random", "keep_ratio": 0.5}}, TypeError, "kv must be an eviction"),
        ({"kv": {"method": "snap_kv", "keep_ratio": 0}}, ValueError, "keep_ratio"),
        ({"kv": "snap_kv"}, TypeError, "kv must be an eviction"),
        ({"kv": [{"method": "snap_kv"}]}, TypeError, "kv must be an eviction"),
        ([{"method": "snap_kv"}, {"method": "key_diff"}], ValueError, "one eviction, got 2"),
        ({"gqa": "group"}, ValueError, "gqa must be one of auto, grouped, kernel.*did you mean 'grouped'"),
        ({"gqa": None}, ValueError, "gqa must be one of"),
        ({"gqa": ["auto"]}, ValueError, "gqa must be one of"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": True}, TypeError, "seed"),
        ({"seed": 1.0}, TypeError, "seed"),
        ({"seed": None}, TypeError, "seed"),
        ({"seed": 2**63}, ValueError, "seed"),
    ],
    ids=str,
)
def test_what_is_no_policy(source, error, match):
    with pytest.raises(error, match=match):
        Policy.load(source)


@pytest.mark.parametrize(
    ("prune", "match"),
    [
        ([Random(keep_ratio=0.5), Uniform(keep_ratio=0.5)], "both act before layer 0"),
        ([Random(keep_ratio=0.5), Uniform(keep_ratio=0.7, layer=2)], "keep_ratio=0.7.*exceeds"),
        ([Random(keep_tokens=5), Uniform(keep_tokens=6, layer=2)], "keep_tokens=6.*exceeds"),
        (
            [Random(keep_ratio=0.5), Uniform(keep_tokens=9, layer=2), Uniform(keep_ratio=0.6, layer=3)],
            "keep_ratio=0.6.*exceeds",
        ),
        ([Random(keep_ratio=0.5, positions="repack"), Uniform(keep_ratio=0.4, layer=2)], "repack.*mixed"),
        ([Random(keep_ratio=0.5, positions="repack"), Uniform(keep_ratio=0.4, layer=2, positions="pospad")], "repack"),
    ],
)
def test_selectors_that_contradict_each_other(prune, match):
    with pytest.raises(ValueError, match=match):
        Policy(prune=prune)
    with pytest.raises(ValueError, match=match):
        Policy(prune=prune[::-1])


@pytest.mark.parametrize(
    "prune",
    [
        [Random(keep_ratio=0.5), Uniform(keep_ratio=0.5, layer=2)],
        [Random(keep_ratio=0.5), Uniform(keep_tokens=900, layer=2)],  # not comparable before a prompt is known
        [Random(keep_ratio=0.5), Uniform(keep_ratio=1.0, layer=2)],  # neutral: never acts
        [Random(keep_ratio=0.5, positions="pospad"), Uniform(keep_ratio=0.4, layer=2)],
        [Random(keep_ratio=0.5, positions="repack"), Uniform(keep_ratio=0.4, layer=2, positions="repack")],
        [Resize(keep_ratio=0.5), FastV(keep_ratio=0.25, layer=3)],
    ],
)
def test_selectors_that_go_together(prune):
    assert Policy(prune=prune).prune == tuple(prune)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="prune must be a list"):
        Policy(prune=Uniform(keep_ratio=0.5))
    with pytest.raises(TypeError, match="prune may hold Selectors only, got 'uniform'"):
        Policy(prune=["uniform"])


def test_files(tmp_path):
    path = tmp_path / "p.json"
    for text in ("", "{", "\xff"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"p\.json cannot be read"):
            Policy.load(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"p\.json must hold a JSON object"):
        Policy.load(path)
    path.write_text('{"seed": "x"}')
    with pytest.raises(TypeError, match=r"p\.json: seed"):
        Policy.load(str(path))
    with pytest.raises(ValueError, match=FILE_NAME):
        Policy.load(tmp_path)  # a directory without a policy
    with pytest.raises(ValueError, match="is a file"):
        Policy().save_pretrained(path)


# ---- Hub


def test_hub_round_trip(tmp_path, monkeypatch):
    import huggingface_hub

    store, calls = {}, []

    class Api:
        def __init__(self, token=None):
            calls.append(token)

        def create_repo(self, repo_id, private, exist_ok):
            assert exist_ok
            return types.SimpleNamespace(repo_id=f"user/{repo_id}")

        def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
            store[repo_id] = shutil.copytree(folder_path, tmp_path / repo_id)
            return f"https://hub/{repo_id}"

    def download(repo_id, filename, **options):
        if repo_id not in store:
            raise huggingface_hub.errors.LocalEntryNotFoundError("offline")
        assert (filename, options) == (FILE_NAME, {"revision": "main"})
        return str(store[repo_id] / filename)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "reached", lambda endpoint: True)
    policy = presets()["progressive"]
    assert policy.push_to_hub("mine", token="t") == "https://hub/user/mine"
    assert calls == ["t"]
    assert Policy.from_pretrained("user/mine", revision="main") == policy
    with pytest.raises(ValueError, match="'user/other' is not a directory"):
        Policy.from_pretrained("user/other")


def test_hub_offline_and_malformed():
    for name, why in {
        "user/none": "cannot be had from the Hub",
        "a/b/c/d": "no Hub id",
        "bad name!": "no Hub id",
    }.items():
        with pytest.raises(ValueError, match=why):
            Policy.from_pretrained(name)


def test_settings_of_other_kinds():
    @dataclass(frozen=True, kw_only=True)
    class Switch(Host):
        on: bool = setting(False, "On or off.", "bool")

    assert Switch(keep_ratio=0.5, on=True).on
    with pytest.raises(TypeError, match="on must be True or False"):
        Switch(keep_ratio=0.5, on=1)
