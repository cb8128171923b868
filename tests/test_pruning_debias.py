"""Debiasing removes the positional trend of a host's scores and nothing else, wherever the trend is known from."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

import pruning
from pruning import AttentionRows, FastV, Random, Selection, Uniform, VisualTokens
from pruning.base import ScoreSelector, Selector, top
from pruning.debias import Debias
from pruning.profile import PRESETS, DebiasProfile
from pruning.trend import fit_axes, fit_exponential, fit_robust, rope_kernel, rope_trend
from vlmopt import methods

ROWS = AttentionRows(1)
MODEL = {"model_type": "llava", "hidden_size": 64, "layers": 4, "name_or_path": "here"}


def visual(scores: torch.Tensor, *grids: tuple[int, int, int]) -> VisualTokens:
    """Tokens of whole grids with these attention scores [n]; one row of tokens without a grid given."""
    grids = grids or ((1, 1, len(scores)),)
    sizes = [math.prod(grid) for grid in grids]
    coords = torch.cat([torch.cartesian_prod(*map(torch.arange, grid)).reshape(-1, 3) for grid in grids])
    item = torch.repeat_interleave(torch.arange(len(grids)), torch.tensor(sizes))
    signals = {ROWS: scores.float().expand(2, 1, -1)}
    return VisualTokens(len(coords), torch.arange(len(coords)), item, coords, grids, signals, 0, tuple(sizes))


def trend(sigma: float, n: int, mu: float = 0.01) -> torch.Tensor:
    return mu * torch.exp(sigma * torch.arange(n) / n)


def profile(**changes) -> DebiasProfile:
    facts = {
        "model": MODEL, "host": "fastv", "layer": 2, "sigma": [1.2], "samples": 8,
        "queries": "last prompt row", "head_reduction": "mean",
    }  # fmt: skip
    return DebiasProfile(**{**facts, **changes})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps(ScoreSelector):
    """A host that cuts twice and chooses in its own way: the best, and always the last token."""

    name = "steps"
    trend = True

    last: bool = False

    @property
    def needs(self):
        return frozenset({ROWS})

    @property
    def stages(self):
        if self.last:
            return (self,)
        return tuple(dataclasses.replace(self, layer=layer, last=True) for layer in (2, 5))

    def score(self, tokens):
        return tokens.signals[ROWS].mean((0, 1))

    def take(self, tokens, k, scores):
        return Selection(torch.cat([top(scores[:-1], k - 1), torch.tensor([len(tokens) - 1])]), scores)


# --- the trend alone


@pytest.mark.parametrize("sigma", [-0.5, 0.0, 0.7, 1.2, 3.0])
@pytest.mark.parametrize("mu", [1e-6, 0.01, 40.0])
def test_a_pure_trend_becomes_constant(sigma, mu):
    scores = Debias(FastV(keep_tokens=3), sigma=sigma).score(visual(trend(sigma, 576, mu)))
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, torch.full((576,), mu), rtol=1e-5, atol=0)


def test_golden_vector():
    flat = torch.tensor([0.0100, 0.0116, 0.0135, 0.0157, 0.0182, 0.0212, 0.0246, 0.0286])
    a = trend(1.2, 8)
    assert torch.allclose(a, flat, atol=5e-5)
    assert fit_exponential(a) == pytest.approx((0.01, 1.2), rel=1e-5)
    a[2] *= 2
    debiased = Debias(FastV(keep_tokens=1), sigma=1.2).select(visual(a))
    assert FastV(keep_tokens=1).select(visual(a)).keep.tolist() == [7]
    assert debiased.keep.tolist() == [2]
    assert torch.allclose(debiased.scores * 100, torch.tensor([1.0, 1, 2, 1, 1, 1, 1, 1]), rtol=1e-4)
    assert float(fit_robust(a, torch.arange(8) / 8)) == pytest.approx(1.2, abs=5e-4)


def test_with_nothing_left_to_choose_by_the_tie_rule_decides():
    tokens = visual(torch.full((36,), 0.3), (1, 6, 6))
    assert Debias(FastV(keep_tokens=5), sigma=0.0).select(tokens).keep.tolist() == [0, 1, 2, 3, 4]
    assert Debias(FastV(keep_tokens=5), sigma=0.7).select(tokens).keep.tolist() == [0, 1, 2, 3, 4]  # the early ones


@pytest.mark.parametrize("fit", ["preset", "per_sample"])
def test_a_spike_is_found_wherever_it_is(fit):
    generator = torch.Generator().manual_seed(5)
    for place in torch.randint(0, 300, (8,), generator=generator):  # further on the trend itself is above 2x
        a = trend(1.5, 576)
        a[place] *= 2
        assert FastV(keep_tokens=1).select(visual(a)).keep.tolist() == [575]
        known = {"sigma": 1.5} if fit == "preset" else {"shrink": 0.0}
        assert Debias(FastV(keep_tokens=1), fit=fit, **known).select(visual(a)).keep.tolist() == [int(place)]


@pytest.mark.parametrize("sigma", [0.6, 1.2, 2.5])
@pytest.mark.parametrize("n", [144, 576, 2000])
def test_the_robust_fit_ignores_a_tenth_of_spikes(sigma, n):
    generator = torch.Generator().manual_seed(n)
    a = trend(sigma, n)
    a[torch.randperm(n, generator=generator)[: n // 10]] *= 2
    assert float(fit_robust(a, torch.arange(n) / n)) == pytest.approx(sigma, rel=0.05)
    a[::3] = 0  # and what is not positive
    assert float(fit_robust(a, torch.arange(n) / n)) == pytest.approx(sigma, rel=0.08)


@pytest.mark.parametrize("sigma", [0.6, 1.2, 2.5])
def test_the_robust_fit_ignores_salient_objects_at_the_top(sigma):
    generator, x = torch.Generator().manual_seed(7), torch.arange(2000) / 2000
    salient = torch.rand(2000, generator=generator) < 0.2 * (1 - x)
    times = torch.where(salient, (7 * torch.rand(2000, generator=generator)).exp(), 1.0)  # up to a thousandfold
    assert float(fit_robust(trend(sigma, 2000) * times, x)) == pytest.approx(sigma, rel=0.05)


def test_the_robust_fit_has_limits():
    x = torch.arange(64) / 64
    assert float(fit_robust(torch.exp(5 * x), x)) == 3.0
    assert float(fit_robust(torch.exp(-2 * x), x)) == -0.5
    assert float(fit_robust(torch.rand(1), torch.zeros(1))) == 0.0
    assert float(fit_robust(torch.zeros(9), x[:9])) == 0.0


def test_scale_does_not_matter():
    a = torch.rand(100, generator=torch.Generator().manual_seed(2)) + 0.01
    for fit in ({"sigma": 1.1}, {"fit": "per_sample"}, {"fit": "subtract", "sigma": 1.1}, {"preset": "paper_fastv"}):
        method = Debias(FastV(keep_tokens=20), **fit)
        assert torch.equal(method.select(visual(a)).keep, method.select(visual(a * 1024)).keep)  # exact in fp32
    one, other = (Debias(FastV(keep_tokens=20), fit="offline", profile=profile(mu=mu)) for mu in (0.01, 7.0))
    assert torch.equal(one.select(visual(a)).scores, other.select(visual(a)).scores)


@pytest.mark.parametrize("shape", [(1, 24, 24), (4, 5, 6)])
def test_a_slope_of_zero_is_the_host(shape):
    tokens = visual(torch.rand(math.prod(shape), generator=torch.Generator().manual_seed(1)), shape)
    for known in ({"sigma": 0.0}, {"fit": "offline", "profile": profile(sigma=[0, 0, 0], axes="thw")}):
        debiased, host = Debias(FastV(keep_ratio=0.3), **known).select(tokens), FastV(keep_ratio=0.3).select(tokens)
        assert torch.equal(debiased.keep, host.keep)
        assert torch.equal(debiased.scores, host.scores)


def test_a_fit_serves_other_lengths():
    _, sigma = fit_exponential(trend(1.7, 576))
    scores = Debias(FastV(keep_tokens=9), sigma=sigma).score(visual(trend(1.7, 2880)))
    assert torch.allclose(scores, scores[:1], rtol=1e-5)


def test_every_picture_has_its_own_trend():
    a = torch.cat([trend(1.3, 60), 5 * trend(1.3, 200)])
    scores = Debias(FastV(keep_tokens=9), sigma=1.3).score(visual(a, (1, 6, 10), (1, 10, 20)))
    assert torch.allclose(scores, torch.tensor([0.01, 0.05]).repeat_interleave(torch.tensor([60, 200])), rtol=1e-5)


def test_places_are_those_before_any_pruning():
    tokens = visual(trend(2.0, 100))
    left = torch.tensor([3, 40, 41, 99])
    scores = Debias(FastV(keep_tokens=2), sigma=2.0).score(tokens.subset(left))
    assert torch.allclose(scores, torch.full((4,), 0.01), rtol=1e-5)


def test_selection_frequency_becomes_flat():
    generator = torch.Generator().manual_seed(0)
    count = {"host": torch.zeros(192), "debiased": torch.zeros(192)}
    known = {"host": FastV(keep_ratio=0.25), "debiased": Debias(FastV(keep_ratio=0.25), sigma=0.9)}
    for _ in range(400):
        content = torch.randn(192, generator=generator).mul(0.5).exp()
        tokens = visual(content * trend(0.9, 192))
        for name, method in known.items():
            count[name][method.select(tokens).keep] += 1
    assert fit_exponential(count["host"])[1] > 0.9  # top-k amplifies
    assert abs(fit_exponential(count["debiased"])[1]) < 0.1


# --- least squares


def test_least_squares_are_on_the_scores_and_not_on_their_logarithm():
    n = 200
    a = trend(1.0, n) + 1e-3 * torch.randn(n, generator=torch.Generator().manual_seed(4))
    mu, sigma = fit_exponential(a)
    x = torch.arange(n, dtype=torch.float64) / n

    def loss(mu, sigma):
        return float((a.double() - mu * torch.exp(sigma * x)).square().sum())

    assert sigma == pytest.approx(1.0, abs=0.05)
    for moved in ((mu * 1.01, sigma), (mu * 0.99, sigma), (mu, sigma + 0.01), (mu, sigma - 0.01)):
        assert loss(mu, sigma) < loss(*moved)
    assert fit_exponential(torch.cat([torch.zeros(50), torch.full((50,), 0.2)]))[1] > 1  # zeros count
    assert fit_exponential(trend(-1.4, 30)) == pytest.approx((0.01, -1.4), rel=1e-5)


@pytest.mark.parametrize("bad", [torch.rand(2, 3), torch.zeros(9), torch.tensor([0.1]), torch.tensor([0.1, math.nan])])
def test_least_squares_refuse(bad):
    with pytest.raises(ValueError, match="mean_scores"):
        fit_exponential(bad)


# --- several axes


def test_a_vertical_trend_is_removed_and_a_horizontal_pattern_stays():
    y, x = torch.cartesian_prod(torch.arange(20), torch.arange(32)).T
    pattern = 1 + 0.4 * torch.cos(2 * math.pi * (x + 0.5) / 32)  # symmetric: no slope along x
    tokens = visual(pattern * torch.exp(1.4 * y / 20), (1, 20, 32))
    coords = torch.stack([torch.zeros(640), y / 20, x / 32], 1)
    sigma = fit_axes(tokens.signals[ROWS][0, 0], coords)
    assert torch.allclose(sigma, torch.tensor([0.0, 1.4, 0.0]), atol=1e-3)
    scores = Debias(FastV(keep_tokens=9), fit="per_sample", axes="thw", shrink=0.0).score(tokens)
    assert torch.allclose(scores, pattern.float(), rtol=2e-3)


def test_three_slopes_at_once_also_on_scattered_tokens():
    true = torch.tensor([0.9, 1.5, -0.3])
    coords = torch.cartesian_prod(torch.arange(6) / 6, torch.arange(10) / 10, torch.arange(14) / 14)
    assert torch.allclose(fit_axes(torch.exp(coords @ true), coords), true, atol=1e-3)
    _, y, x = coords.T
    some = coords[(torch.rand(840, generator=torch.Generator().manual_seed(0)) < 0.7) & (y + x < 1.5)]
    assert torch.allclose(fit_axes(torch.exp(some @ true), some), true, atol=5e-3)  # axes are no longer independent


def test_profiles_of_three_slopes_and_of_frames():
    grid = (4, 6, 8)
    t, y, x = torch.cartesian_prod(*map(torch.arange, grid)).T
    thw = Debias(FastV(keep_tokens=5), fit="offline", profile=profile(axes="thw", sigma=[0.5, 1.2, -0.2]))
    scores = thw.score(visual(torch.exp(0.5 * t / 4 + 1.2 * y / 6 - 0.2 * x / 8), grid))
    assert torch.allclose(scores, torch.ones(192), rtol=1e-5)
    frames = Debias(FastV(keep_tokens=5), fit="offline", profile=profile(sigma=[1.2], across_frames=0.7))
    scores = frames.score(visual(torch.exp(1.2 * (y * 8 + x) / 48 + 0.7 * t / 4), grid))
    assert torch.allclose(scores, torch.ones(192), rtol=1e-5)


def test_slopes_of_a_profile_are_clipped():
    wild = Debias(FastV(keep_tokens=5), fit="offline", profile=profile(sigma=[40.0]))
    assert torch.allclose(wild.score(visual(trend(3.0, 64))), torch.full((64,), 0.01), rtol=1e-5)


# --- rotary positions


@pytest.mark.parametrize(
    ("base", "values"),
    [
        (1e4, [11.314, 10.977, 7.570, 5.399, 2.646, 1.799, 0.478, -0.079, -1.204]),
        (1e6, [11.314, 11.074, 8.773, 6.633, 5.225, 5.556, 4.640, 3.239, 2.661]),
    ],
)
def test_golden_kernel(base, values):
    distance = torch.tensor([0, 1, 10, 100, 576, 1000, 3000, 5000, 20000])
    assert torch.allclose(rope_kernel(distance, base, 128), torch.tensor(values), atol=6e-4)


@pytest.mark.parametrize("base", [1e3, 1e4, 1e6])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_the_kernel_divides_by_positive_numbers_only(base, head_dim):
    lowest = rope_trend(torch.arange(100_001), base, head_dim).min()
    assert lowest >= 0.1 * head_dim**0.5 * (1 - 1e-6)


def test_rotary_trend_is_counted_from_the_question():
    distance = torch.arange(30 + 575, 29, -1)
    a = 0.01 * rope_trend(distance, 1e4, 128)
    method = Debias(FastV(keep_tokens=4), fit="rope_kernel", rope_base=1e4, head_dim=128)
    assert torch.allclose(method.score(visual(a)), torch.full((576,), 0.01), rtol=1e-5)


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
    assert not method.neutral
    assert Debias(FastV(keep_ratio=1.0)).neutral
    assert method.asks_text
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
    with pytest.raises(ValueError, match=r"missing keys \['model', 'host'"):
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


# --- refusals


@pytest.mark.parametrize(
    ("host", "error", "match"),
    [
        (Uniform(keep_tokens=9), TypeError, "ranks by scores"),
        ("fastv", TypeError, "ranks by scores.*'fastv'"),
        (Random(keep_tokens=9), ValueError, "'random' are no attention inside the LLM"),
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
