"""Debiasing removes the positional trend of a host's scores and nothing else, wherever the trend is known from."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from tests.support.debias import MODEL, ROWS, Steps, profile, trend, visual
from vlmopt import methods, pruning
from vlmopt.pruning import FastV, Random, Uniform
from vlmopt.pruning.base import Selector
from vlmopt.pruning.debias import Debias
from vlmopt.pruning.profile import PRESETS, DebiasProfile
from vlmopt.pruning.trend import fit_exponential

# --- what is known beforehand


def test_presets_are_those_of_the_released_weights():
    means = {"himap": 1.073, "pyramid_drop": 1.890, "sparse_vlm": 1.945, "tokencarve": 0.832}
    assert {name: PRESETS[name].sigma for name in means} == means
    assert all(preset.origin.startswith("LLaVA-1.5") for preset in PRESETS.values())
    i = torch.arange(576).double()
    released = 1 + 3.01519760e-3 * i - 1.45979083e-5 * i**2 + 2.56911352e-8 * i**3
    assert float(released[575]) == pytest.approx(2.791, abs=1e-3)
    scores = Debias(FastV(keep_tokens=9)).score(visual(released))  # the default of fastv is its own
    assert torch.allclose(scores, torch.ones(576), rtol=1e-4)
    assert not torch.allclose(Debias(FastV(keep_tokens=9), preset="fastv_exponential").score(visual(released)), scores)


def test_the_sample_is_mixed_with_what_is_known():
    tokens = visual(trend(2.0, 576))
    for known, slope in (({}, 1.0), ({"sigma": 1.0}, 1.5), ({"preset": "fastv_exponential"}, 1.45), ({"shrink": 1}, 0)):
        scores = Debias(FastV(keep_tokens=9), fit="per_sample", **known).score(tokens)
        assert fit_exponential(scores)[1] == pytest.approx(2.0 - slope, abs=2e-3)


def test_subtraction_takes_the_mean_away_and_may_go_below_zero():
    scores = Debias(FastV(keep_tokens=9), fit="subtract", sigma=1.2).score(visual(trend(1.2, 576)))
    assert scores.abs().max() < 1e-7
    spiked = torch.rand(576, generator=torch.Generator().manual_seed(1))
    assert Debias(FastV(keep_tokens=9), fit="subtract", sigma=1.2).score(visual(spiked)).min() < 0


def test_fitting_does_not_wait_for_the_device():
    tokens = visual(torch.rand(48), (1, 6, 8))
    moved = {f: getattr(tokens, f).to("meta") for f in ("ordinal", "item", "coords")}
    tokens = dataclasses.replace(tokens, **moved, signals={ROWS: torch.rand(2, 1, 48, device="meta")})
    for axes in ("raster", "thw"):  # a meta tensor has no values: reading one, or a size that depends on one, raises
        assert Debias(FastV(keep_tokens=9), fit="per_sample", axes=axes).score(tokens).shape == (48,)


# --- the host


def test_everything_but_the_scores_is_the_hosts():
    host = FastV(keep_ratio=0.4, layer=3, positions="pospad", marker="last", padding="square", segment="frame")
    method = Debias(host, sigma=1.0)
    for f in dataclasses.fields(Selector):
        assert getattr(method, f.name) == getattr(host, f.name)
    assert method.needs == host.needs
    assert method.captures == host.captures
    assert method.stages == (method,)
    assert not method.is_identity
    assert Debias(FastV(keep_ratio=1.0)).is_identity
    assert method.query_aware
    assert not method.trend
    odd = [(FastV(keep_ratio=0.5, paper_compat=compat)) for compat in (True, False)]
    assert [Debias(host).budget(5) for host in odd] == [host.budget(5) for host in odd] == [2, 3]
    assert Debias(odd[0]).allocation == "global"


def test_the_host_keeps_its_own_way_to_choose():
    a = trend(1.0, 50)
    a[7] *= 2
    method = Debias(Steps(keep_tokens=2, last=True), sigma=1.0)
    assert method.select(visual(a)).keep.tolist() == [7, 49]
    everything = Debias(FastV(keep_tokens=50), sigma=1.0).select(visual(a))
    assert everything.keep.tolist() == list(range(50))


def test_only_the_first_stage_of_a_progressive_host_is_corrected():
    host = Steps(keep_tokens=2)
    first, second = Debias(host, sigma=1.0).stages
    assert second == host.stages[1]
    assert isinstance(first, Debias)
    assert first.host == host.stages[0]
    assert (first.layer, first.sigma, first.stages) == (2, 1.0, (first,))


def test_padding_is_suppressed_by_the_host():
    pixels = torch.rand(36, 3, 4)
    pixels[:12] = 0.0
    a = trend(1.0, 36)
    a[:12] = math.inf
    tokens = visual(a, (1, 6, 6))
    tokens = dataclasses.replace(tokens, signals={**tokens.signals, pruning.Pixels(): pixels})
    method = Debias(FastV(keep_tokens=30, padding="square"), sigma=1.0)
    assert method.select(tokens).keep.tolist() == list(range(12, 36))
    few = Debias(FastV(keep_tokens=3, padding="square"), sigma=1.0).select(tokens)
    assert few.keep.min() >= 12
    assert torch.allclose(few.scores[12:], torch.full((24,), 0.01), rtol=1e-5)


# --- files


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (Debias(FastV(keep_ratio=0.25, layer=3)), {"host": {"method": "fastv", "keep_ratio": 0.25, "layer": 3}}),
        (Debias(FastV(keep_tokens=9), sigma=1.0), {"host": {"method": "fastv", "keep_tokens": 9}, "sigma": 1.0}),
        (
            Debias(FastV(keep_tokens=9), fit="per_sample", axes="thw"),
            {"host": {"method": "fastv", "keep_tokens": 9}, "fit": "per_sample", "axes": "thw"},
        ),
    ],
)
def test_a_policy_states_its_own_settings_and_the_host(method, settings):
    data = json.loads(json.dumps(methods.to_dict(method)))
    assert data == {"method": "debias", **settings}
    assert methods.build(data) == method
    assert hash(methods.build(data)) == hash(method)


def test_a_profile_is_written_and_read(tmp_path):
    for made in (profile(), profile(axes="thw", sigma=(0.1, 0.2, 0.3), mu=0.02), profile(across_frames=-0.1)):
        assert DebiasProfile.load(made.save(tmp_path / "trend.json")) == made
        data = json.loads(json.dumps(made.to_dict()))
        method = Debias(FastV(keep_tokens=9), fit="offline", profile=data)
        assert method == Debias(FastV(keep_tokens=9), fit="offline", profile=made)
        assert isinstance(hash(method), int)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"format": 2}, ValueError, "'format': 1, got 2"),
        ({"colour": 3}, ValueError, r"unknown keys \['colour'\]"),
        ({"sigma": None}, TypeError, "sigma must be a list of numbers"),
        ({"sigma": [1, 2]}, ValueError, "takes 1 slopes"),
        ({"axes": "thw"}, ValueError, "takes 3 slopes"),
        ({"axes": "thw", "sigma": [1, 2, 3], "across_frames": 1}, ValueError, "across_frames"),
        ({"sigma": [math.nan]}, ValueError, "sigma"),
        ({"samples": 0}, ValueError, "samples"),
        ({"model": "llava"}, TypeError, "model"),
    ],
    ids=str,
)
def test_profiles_that_are_refused(change, error, match, tmp_path):
    data = {**profile().to_dict(), **change}
    with pytest.raises(error, match=match):
        DebiasProfile.from_dict(data)
    (tmp_path / "bad.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"bad\.json holds no debias profile"):
        DebiasProfile.load(tmp_path / "bad.json")


def test_profiles_that_are_no_profiles(tmp_path):
    (tmp_path / "text.json").write_text("{")
    for name in ("text.json", "missing.json"):
        with pytest.raises(ValueError, match="holds no debias profile"):
            DebiasProfile.load(tmp_path / name)
    with pytest.raises(ValueError, match=r"missing keys \['model', 'samples', 'host'"):
        DebiasProfile.from_dict({"format": 1, "sigma": [1.0]})
    with pytest.raises(TypeError, match="must be a dict"):
        DebiasProfile.from_dict([1])


def test_a_profile_serves_only_where_it_was_measured():
    method = Debias(FastV(keep_tokens=9), fit="offline", profile=profile())
    method.check_model({**MODEL, "name_or_path": "a copy elsewhere"})
    with pytest.raises(ValueError, match="hidden_size is 128, the profile's is 64"):
        method.check_model({**MODEL, "hidden_size": 128})
    with pytest.raises(ValueError, match=r"host is 'fastv', the profile's is 'pyramid_drop'; layer is 2.* 8"):
        Debias(FastV(keep_tokens=9), fit="offline", profile=profile(host="pyramid_drop", layer=8))
    forced = Debias(FastV(keep_tokens=9, layer=4), fit="offline", profile=profile(), force=True)
    forced.check_model({**MODEL, "hidden_size": 128})
    Debias(FastV(keep_tokens=9), sigma=1.0).check_model({})


@pytest.mark.parametrize("widths", [64, [32, 64]], ids=str)
def test_rotary_positions_are_of_heads_as_wide_as_the_models(widths):
    method = Debias(FastV(keep_tokens=9), fit="rope_kernel", rope_base=1e4, head_dim=64)
    method.check_model({"head_dim": widths})
    with pytest.raises(ValueError, match="head_dim must be at most 64, that of this model, got 128"):
        dataclasses.replace(method, head_dim=128).check_model({"head_dim": widths})


# --- refusals


@pytest.mark.parametrize(
    ("host", "error", "match"),
    [
        (Uniform(keep_tokens=9), TypeError, "ranks by scores"),
        ("fastv", TypeError, "ranks by scores.*'fastv'"),
        (Random(keep_tokens=9), ValueError, "'random' are not attention inside the LLM"),
        (Debias(FastV(keep_tokens=9)), ValueError, "debiased already"),
    ],
    ids=["no ranking", "a name", "no trend", "itself"],
)
def test_hosts_that_are_refused(host, error, match):
    with pytest.raises(error, match=match):
        Debias(host, sigma=1.0)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"fit": "magic"}, ValueError, "preset, offline, per_sample, rope_kernel, subtract"),
        ({"sigma": 3.1}, ValueError, "sigma"),
        ({"preset": "fastv"}, ValueError, "paper_fastv"),
        ({"sigma": 1.0, "preset": "himap"}, ValueError, "twice"),
        ({"fit": "offline"}, ValueError, r"needs \['profile'\]"),
        ({"fit": "offline", "profile": 3}, TypeError, "DebiasProfile or its dict form"),
        ({"profile": profile()}, ValueError, "no use for"),
        ({"fit": "rope_kernel", "rope_base": 1e4}, ValueError, r"needs \['head_dim'\]"),
        ({"fit": "rope_kernel", "rope_base": 1e4, "head_dim": 64, "sigma": 1.0}, ValueError, "no use for"),
        ({"rope_base": 1e4}, ValueError, "no use for"),
        ({"axes": "thw"}, ValueError, "thw.*per_sample"),
        ({"axes": "thw", "fit": "per_sample", "sigma": 1.0}, ValueError, "raster"),
        ({"axes": "thw", "fit": "per_sample", "profile": profile()}, ValueError, "the profile has 'raster'"),
        ({"keep_ratio": 0.5}, TypeError, "keep_ratio"),
    ],
    ids=str,
)
def test_settings_that_are_refused(settings, error, match):
    with pytest.raises(error, match=match):
        Debias(FastV(keep_tokens=9), **settings)


def test_a_host_without_a_published_trend_says_what_to_do():
    with pytest.raises(ValueError, match=r"no published trend of 'steps'.*per_sample"):
        Debias(Steps(keep_tokens=3))


def test_scores_that_are_not_finite_name_the_host():
    with pytest.raises(ValueError, match=r"debias\(fastv\).*finite"):
        Debias(FastV(keep_tokens=3)).select(visual(torch.tensor([1.0, math.nan, 2, 3, 4])))
