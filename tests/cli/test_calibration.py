"""Calibration: the measured trend is the planted one, runs resume, and profiles fit the model they were measured on."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage

import vlmopt
from tests.support.broken import broken_tiff
from tests.support.families import FAMILIES, Image
from tests.support.mechanism import forward
from vlmopt.api import session_of
from vlmopt.calibration import Collector, Profile, default_hosts
from vlmopt.calibration.table import table
from vlmopt.calibration.trends import Sums
from vlmopt.cli.main import main
from vlmopt.pruning import Debias, DebiasProfile, DivPrune, FastV, PyramidDrop, SparseVLM, VisualTokens
from vlmopt.pruning.signals import AttentionRows

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ["--host", "fastv:2", "--host", "pyramid_drop:2", "--host", "sparse_vlm:3"]


def tokens(h: int, w: int) -> VisualTokens:
    coords = torch.cartesian_prod(torch.zeros(1).long(), torch.arange(h), torch.arange(w))
    n = h * w
    return VisualTokens(n, torch.arange(n), torch.zeros(n).long(), coords, ((1, h, w),), {}, 0, (n,))


def test_a_planted_trend_is_found_over_images_of_many_sizes():
    sums, generator = Sums(), torch.Generator().manual_seed(0)
    for h, w in ((8, 8), (12, 20), (24, 24), (30, 17)) * 10:
        t = tokens(h, w)
        content = torch.rand(len(t), generator=generator) + 0.5
        scale = 10 * torch.rand(1, generator=generator)
        sums.add(t, scale * content * (1.4 * t.place / len(t)).exp())
    assert sums.raster_fit()[1] == pytest.approx(1.4, abs=0.05)
    state = json.loads(json.dumps(sums.state()))
    assert Sums.of(state).raster_fit() == sums.raster_fit()


def test_axes_are_told_apart():
    sums = Sums()
    for h, w in ((16, 16), (24, 12), (32, 32)):
        t = tokens(h, w)
        sums.add(t, (0.9 * t.coords[:, 1] / h - 0.3 * t.coords[:, 2] / w).exp())
    assert sums.grid_fit() == pytest.approx((0.0, 0.9, -0.3), abs=0.06)


def drawn(images: int, slope: float, spread: float, seed: int = 0) -> Sums:
    """Images whose own slopes lie around `slope`, big and small ones in turn."""
    sums, generator = Sums(), torch.Generator().manual_seed(seed)
    for number in range(images):
        t = tokens(*((8, 8), (24, 24))[number % 2])
        own = slope + spread * torch.randn(1, generator=generator)
        sums.add(t, (torch.rand(len(t), generator=generator) + 0.5) * (own * t.place / len(t)).exp())
    return sums


def test_the_standard_error_is_that_of_other_images():
    """The slope found on forty other sets of images varies as the standard error of one set says."""
    found = [drawn(46, 0.5, 0.6, seed) for seed in range(40)]
    slopes = torch.tensor([sums.raster_fit()[1] for sums in found])
    errors = torch.tensor([sums.raster_error()[0] for sums in found])
    assert float(errors.mean()) == pytest.approx(float(slopes.std()), rel=0.3)
    assert 0.06 < float(errors.mean()) < 0.16  # 0.6 / sqrt(46) is 0.09: images count, not their 14 000 tokens
    held = (slopes - slopes.mean()).abs() < 1.96 * errors
    assert float(held.float().mean()) > 0.85
    y, x = found[0].grid_error()[1:]
    assert y > 0
    assert x > 0
    assert drawn(1, 0.5, 0.0).raster_error() == drawn(1, 0.5, 0.0).grid_error() == ()


def test_a_slope_that_may_be_0_is_doubted():
    facts = {"model": {}, "host": "fastv", "layer": 2, "samples": 60, "queries": "", "head_reduction": ""}
    clear, unclear = (DebiasProfile(sigma=(value,), error=(0.1,), **facts) for value in (0.23, 0.1))
    assert clear.doubts == ()
    assert "+0.100 ± 0.100" in unclear.doubts[0]
    axes = DebiasProfile(sigma=(0.0, 0.1, 0.9), error=(0.0, 0.1, 0.1), axes="thw", **facts)
    assert len(axes.doubts) == 1
    assert "slope over y" in axes.doubts[0]
    assert DebiasProfile.from_dict(unclear.to_dict()) == unclear
    known = DebiasProfile(sigma=(0.1,), **facts)
    assert "error" not in known.to_dict()  # as earlier versions read it
    assert known.doubts == ()
    shown = table(Profile({}, "some", (unclear, replace(axes, layer=2))), "m")
    assert "+0.100 ± 0.100" in shown
    assert "warning  fastv before layer 2: the slope over the place in the image" in shown
    assert "the slope may be 0" in str(Debias(FastV(keep_ratio=0.5, layer=2), fit="offline", profile=unclear).source)
    with pytest.raises(ValueError, match="as many numbers as sigma"):
        DebiasProfile(sigma=(0.1,), error=(0.1, 0.2), **facts)


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen"])
def test_files_without_standard_errors_are_read(name):
    found = Profile.load(ROOT / "benchmarks" / "profiles" / f"{name}.json")
    assert {p.error for p in found.debias} == {()}


def test_sums_of_an_earlier_version_are_refused():
    state = Sums().state()
    with pytest.raises(ValueError, match="earlier version"):
        Sums.of(state | {"raster": state["raster"][0]})


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.extra])
def test_scores_are_those_of_the_hosts_and_nothing_is_dropped(name):
    family = FAMILIES[name]
    model, batch = copy.deepcopy(family.build()), family.inputs([[5, Image(0), 7]])
    dense = forward(model, batch)
    hosts = [FastV(keep_ratio=0.5, layer=2), PyramidDrop(keep_ratio=0.5, layers=(2, 4)), SparseVLM(keep_ratio=0.5)]
    hosts[2] = SparseVLM(keep_ratio=0.5, layers=(3,))
    collector = Collector(model, hosts)
    for _ in range(2):
        collector.add(batch())
    assert collector.done == 2
    assert torch.equal(forward(model, batch), dense)  # restored
    profiles = collector.profiles("mine")
    assert [(p.host, p.layer, p.axes) for p in profiles[::2]] == [
        ("fastv", 2, "raster"), ("pyramid_drop", 2, "raster"), ("sparse_vlm", 3, "raster")]  # fmt: skip
    assert all(p.model["layers"] == 6 and p.samples == 2 for p in profiles)
    if name in ("llava_next", "llava_onevision"):  # row separators are not part of the trend
        return
    with torch.no_grad():
        attention = copy.deepcopy(family.build("eager"))(**batch(), output_attentions=True).attentions[1]
    scores = attention[0, :, -1].mean(0)[batch.visual[0]]
    expected = Sums()
    t = tokens(1, len(scores))
    for _ in range(2):
        expected.add(t, scores)
    assert torch.allclose(collector.sums["fastv:2"].raster, expected.raster, atol=1e-5)


def test_hosts_without_a_trend_are_refused():
    model = copy.deepcopy(FAMILIES["llava"].build())
    with pytest.raises(ValueError, match="div_prune"):
        Collector(model, [DivPrune(keep_ratio=0.5)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="each once"):
        Collector(model, [FastV(keep_ratio=0.5), FastV(keep_ratio=0.2)])
    with pytest.raises(ValueError, match="layer=9"):
        Collector(model, [FastV(keep_ratio=0.5, layer=9)])
    assert [h.layer for h in default_hosts(32)] == [2, 8, 3]
    assert all(h.layer < 6 for h in default_hosts(6))


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calibration") / "profile.json"
    assert main(["calibrate", "--images", "worlds", "--samples", "6", "--out", str(out), *HOSTS]) == 0
    return out


def test_command_writes_a_profile(profile, capsys):
    found = Profile.load(profile)
    assert found.model["model_type"] == "qwen2_5_vl"
    assert {(p.host, p.layer) for p in found.debias} == {("fastv", 2), ("pyramid_drop", 2), ("sparse_vlm", 3)}
    assert all(p.samples == 6 for p in found.debias)
    assert str(vlmopt.checkpoints.HERE) not in profile.read_text()
    assert not list(profile.parent.glob("*.part"))


def test_an_interrupted_run_goes_on(profile, tmp_path, monkeypatch):
    """Stopped after four images, it ends with the same figures."""
    out = tmp_path / "again.json"
    command = ["calibrate", "--images", "worlds", "--samples", "6", "--out", str(out), *HOSTS]
    kept, count = Collector.add, [0]

    def stop(self: Collector, inputs: Any) -> None:
        if count[0] == 4:
            raise KeyboardInterrupt
        count[0] += 1
        kept(self, inputs)

    monkeypatch.setattr("vlmopt.cli.calibrate.SAVE_EVERY", 2)
    monkeypatch.setattr(Collector, "add", stop)
    assert main(command) == 130
    assert json.loads(Path(f"{out}.part").read_text())["seen"] == 4
    monkeypatch.setattr(Collector, "add", kept)
    assert main([*command[:-1], "sparse_vlm:4"]) == 2  # another run's remains
    assert main(command) == 0
    for again, once in zip(Profile.load(out).debias, Profile.load(profile).debias, strict=True):
        assert again.sigma == pytest.approx(once.sigma, abs=1e-5)  # threads add up in any order
        assert again.samples == once.samples


def test_a_directory_of_images(tmp_path, capsys):
    for i in range(3):
        PILImage.new("RGB", (120 + 30 * i, 90), (40 * i, 90, 120)).save(tmp_path / f"{i}.png")
    out = tmp_path / "p.json"
    assert main(["calibrate", "--images", str(tmp_path), "--host", "fastv:2", "--out", str(out)]) == 0
    assert Profile.load(out).debias[0].samples == 3
    assert "3 images" in capsys.readouterr().out


def test_images_that_cannot_be_read_are_left_out_and_counted(tmp_path, capsys):
    broken_tiff(tmp_path / "0.tiff")
    (tmp_path / "1.png").write_bytes(b"no image")
    command = ["calibrate", "--images", str(tmp_path), "--host", "fastv:2", "--only", "debias"]
    assert main([*command, "--out", str(tmp_path / "p.json")]) == 2
    assert "none of the 2 images can be read" in capsys.readouterr().err
    for i in (2, 3):
        PILImage.new("RGB", (120, 90), (40 * i, 90, 120)).save(tmp_path / f"{i}.png")
    assert main([*command, "--out", str(tmp_path / "p.json")]) == 0
    assert "2 of 4 images are left out" in capsys.readouterr().out
    found = Profile.load(tmp_path / "p.json")
    assert found.debias[0].samples == 2
    assert "(2 more could not be read)" in found.data


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--images", "nowhere"], "not a directory"),
        (["--images", "worlds", "--samples", "0"], "--samples"),
        (["--images", "worlds", "--host", "fastv"], "NAME:LAYER"),
        (["--images", "worlds", "--host", "uniform:0"], "no trend"),
        (["--images", "worlds", "--host", "fastv:17"], "layer=17"),
    ],
)
def test_requests_that_cannot_be_served(arguments, says, tmp_path, capsys):
    assert main(["calibrate", "--out", str(tmp_path / "p.json"), *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_profile_that_is_none_is_refused(tmp_path):
    for text in ("", "[]", '{"format": 2}', '{"format": 1, "vlmopt": "0", "model": {}, "data": "", "debias": [{}]}'):
        path = tmp_path / "p.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"p\.json"):
            Profile.load(path)


def test_profile_debiases_a_policy(profile):
    found = Profile.load(profile)
    policy = found.apply(vlmopt.Policy.load([FastV(keep_ratio=0.25, layer=2), DivPrune(keep_ratio=0.5)]))
    plain, debiased = policy.prune
    assert isinstance(plain, DivPrune)
    assert isinstance(debiased, Debias)
    assert vlmopt.Policy.load(json.loads(policy.to_json())) == policy
    with pytest.raises(ValueError, match=r"fastv before layer 3.*fastv:3"):
        found.apply(vlmopt.Policy.load(FastV(keep_ratio=0.25, layer=3)))


def test_report_names_the_profile_and_another_model_refuses_it(profile):
    found = Profile.load(profile)
    method = found.apply(vlmopt.Policy.load(FastV(keep_ratio=0.25, layer=2)))
    model, processor = vlmopt.load_checkpoint("tiny-qwen")
    from vlmopt.prompt import image_prompt

    inputs = image_prompt(processor, "Is there a red circle?", [PILImage.new("RGB", (224, 224), (90, 90, 90))])
    with vlmopt.optimized(model, method):
        model.generate(**inputs, max_new_tokens=2)
        report = vlmopt.report(model)
    assert "tiny-qwen" in report.applied[0]["source"]
    assert "tiny-qwen" in str(report)
    other = copy.deepcopy(FAMILIES["llava"].build())
    with pytest.raises(ValueError, match=r"model_type is 'llava'"):
        vlmopt.optimize(other, method)
    assert session_of(other) is None
    forced = replace(method.prune[0], force=True)
    with vlmopt.optimized(other, forced):
        forward(other, FAMILIES["llava"].inputs([[5, Image(0), 7]]))


def test_debiasing_runs_the_same_kernels_and_is_the_host_when_all_stay():
    """Nothing is computed beyond the host's own row; with k = N even the bits are those of the host."""
    family = FAMILIES["llava"]
    batch, counts = family.inputs([[5, Image(0), 7]]), []
    host = FastV(keep_tokens=10_000, layer=2)
    outs = []
    for method in (host, Debias(host)):
        model = copy.deepcopy(family.build())
        with vlmopt.optimized(model, method):
            calls: list[int] = []
            for module in model.modules():
                if isinstance(module, torch.nn.Linear):
                    module.register_forward_hook(lambda *_, calls=calls: calls.append(1))
            outs.append(forward(model, batch))
            counts.append(len(calls))
    assert counts[0] == counts[1]
    assert torch.equal(*outs)


def test_debiasing_changes_what_is_kept_and_padding_stays_out():
    """A profile with a steep slope moves the selection up; padding is suppressed at model level."""
    family = FAMILIES["llava"]
    model, batch = copy.deepcopy(family.build()), family.inputs([[5, Image(0), 7]])
    batch.inputs["pixel_values"][..., :14, :] = 0  # the first of four rows of cells shows the mean colour
    host = FastV(keep_ratio=0.5, layer=2, padding="square")
    facts: dict[str, Any] = {
        "model": {}, "host": "fastv", "layer": 2, "samples": 1, "queries": "last", "head_reduction": "mean",
    }  # fmt: skip
    steep = DebiasProfile(sigma=(3.0,), **facts)
    kept = {}
    for name, method in (("host", host), ("debiased", Debias(host, fit="offline", profile=steep))):
        with vlmopt.optimized(model, method):
            forward(model, batch)
            (m,) = vlmopt.report(model).maps(0)
        kept[name] = m.kept.nonzero()[:, 0]
        assert int(kept[name].min()) >= 4
        assert len(kept[name]) == 8
    assert kept["debiased"].float().mean() < kept["host"].float().mean()
    assert AttentionRows(1) in host.captures
