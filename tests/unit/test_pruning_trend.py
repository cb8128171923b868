"""The positional trend: fits find it, and taking it away leaves what the scores say of content."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.debias import ROWS, profile, trend, visual
from vlmopt.pruning import FastV
from vlmopt.pruning.debias import Debias
from vlmopt.pruning.trend import fit_axes, fit_exponential, fit_robust, rope_kernel, rope_trend

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


def test_every_image_has_its_own_trend():
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
