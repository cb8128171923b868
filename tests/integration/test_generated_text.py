"""IAT and AdaIAT: attention to the text that was generated so far."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.support.row_views import FACTS, close, edited, iat_profile, seen
from vlmopt import methods
from vlmopt.attention_fix import AdaptiveGeneratedText, GeneratedText, IATProfile, correct_rows

ADA = AdaptiveGeneratedText(profile=iat_profile())
RATIOS = [1.5, 1.2, 1.0, 0.9]  # of the four heads: factors 4, 2.2, 1, 0.4 at alpha 6


def softmaxed(rows=1, width=8, batch=2, seed=0):
    logits = torch.randn(batch, 4, rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.softmax(-1)


def test_iat_by_hand():
    row = [1.0, 0.5, -0.4, 0.2, -0.5]
    assert close(edited(GeneratedText(), row, seen(5, generated=(3, 4))), [1.0, 0.5, -0.4, 0.36, -0.1])
    assert edited(GeneratedText(), row, seen(5)) == row  # the first token: nothing is generated


def test_adaiat_by_hand():
    """m = 0.3 on two keys, u = 0.15 is below 0.2; f = 1 + 6 * 0.5 = 4; the row sums to 1 + 3 * 0.3 = 1.9."""
    one_head = IATProfile(
        model={**FACTS, "num_heads": 1}, samples=1, hallucinated=[0.1] * 6, real=[0.3] * 6, ratios=[[1.5]] * 6
    )
    row, view = [0.4, 0.3, 0.1, 0.2], seen(4, generated=(2, 3))
    got = edited(AdaptiveGeneratedText(profile=one_head), row, view)
    assert close(got, [0.4 / 1.9, 0.3 / 1.9, 0.4 / 1.9, 0.8 / 1.9])
    assert edited(AdaptiveGeneratedText(profile=one_head, beta=0.2), row, view) == row  # the threshold is 0.14
    assert edited(AdaptiveGeneratedText(profile=one_head), row, seen(4)) == row


def test_rows_are_remixed():
    """c_Y = f m / (1 + (f - 1) m) on generated keys, everything else divided by the same."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, 2, 4, 9, 8, generator=generator, dtype=torch.float64)
    view = seen(9, batch=2, generated=(6, 7, 8))
    correction = AdaptiveGeneratedText(profile=iat_profile(hallucinated=9.0, real=9.0))  # always too little
    out, changed = correct_rows(query[:, :, -1:], key, value, None, 0.5, [(correction, view)])
    weights = (query[:, :, -1:] @ key.transpose(-1, -2) * 0.5).softmax(-1)[:, :, 0]
    parts = [torch.einsum("bhk,bhkd->bhd", weights[..., s], value[:, :, s]) for s in (slice(0, 6), slice(6, 9))]
    mass = weights[..., 6:].sum(-1, keepdim=True)
    factor = torch.tensor([4.0, 2.2, 1.0, 0.4], dtype=torch.float64)[:, None]
    want = (parts[0] + factor * parts[1]) / (1 + (factor - 1) * mass)
    assert (out[:, 0] - want).abs().max() < 1e-6  # factors are fp32
    assert changed[:, :, 0].tolist() == [[True, True, False, True]] * 2  # a ratio of 1 leaves its head alone


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_sum_to_one(rows):
    weights, view = softmaxed(rows), seen(8, batch=2, rows=rows, generated=(5, 6, 7))
    after, changed = AdaptiveGeneratedText(profile=iat_profile(9.0, 9.0), alpha=20).edit(weights, view)
    assert changed.any()
    assert torch.allclose(after.sum(-1), torch.ones((), dtype=torch.float64), atol=1e-12)
    assert (after >= 0).all()


def test_the_threshold_is_per_sample_and_row():
    weights = softmaxed(rows=2, seed=3)
    attended = weights[..., 5:].mean(-1).sum(1)  # [B, R]
    limit = float(attended.flatten().sort().values[1:3].mean())
    view = seen(8, batch=2, rows=2, generated=(5, 6, 7))
    _, changed = AdaptiveGeneratedText(profile=iat_profile(limit, limit)).edit(weights, view)
    assert torch.equal(changed[:, 0], attended < limit)
    assert changed[:, 0].sum() == 2
    assert torch.equal(changed[:, 0], changed[:, 3])


def test_beta_moves_between_hallucinated_and_real():
    profile = iat_profile(hallucinated=0.1, real=0.3)
    assert [profile.threshold(2, beta) for beta in (0.0, 0.5, 1.0)] == pytest.approx([0.1, 0.2, 0.3])


def test_only_keys_that_the_row_sees_count():
    """With candidates in one step, a row does not see those behind it."""
    weights = softmaxed(rows=2)
    allowed = torch.ones(2, 1, 2, 8, dtype=torch.bool).tril(6)
    weights = weights * allowed
    weights = weights / weights.sum(-1, keepdim=True)
    view = seen(8, batch=2, rows=2, generated=(6, 7), allowed=allowed)
    limit = float(weights[:, :, 0, 6].sum(1).min()) * (1 - 1e-9)  # of the first row, which sees one of the two
    _, changed = AdaptiveGeneratedText(profile=iat_profile(limit, limit)).edit(weights, view)
    assert not changed[:, :, 0].any()
    _, changed = AdaptiveGeneratedText(profile=iat_profile(limit * 1.01, limit * 1.01)).edit(weights, view)
    assert changed[:, :, 0].any()


def test_factors_never_turn_weights_negative():
    weights, view = softmaxed(), seen(8, batch=2, generated=(5, 6, 7))
    strong = AdaptiveGeneratedText(profile=iat_profile(9.0, 9.0, ratios=[[0.1, 0.5, 1.0, 2.0]] * 6), alpha=6)
    after, changed = strong.edit(weights, view)
    assert after[:, :2, :, 5:].eq(0).all()  # 1 - 5.4 and 1 - 3
    assert changed[:, 0].all()
    only = torch.zeros(1, 4, 1, 8, dtype=torch.float64)
    only[..., 5:] = 1 / 3
    _, changed = strong.edit(only, seen(8, generated=(5, 6, 7)))
    assert not changed[:, :2].any()  # nothing would be left


def test_neutral_and_needs_nothing():
    assert AdaptiveGeneratedText(alpha=0, profile=iat_profile()).is_identity
    assert GeneratedText(alpha=0).is_identity
    assert not ADA.is_identity
    assert not ADA.needs
    assert ADA.at(32) == set(range(5, 18))
    assert not ADA.edit(softmaxed(), seen(8, batch=2, image=(1, 2)))[1].any()


def test_nothing_is_read_back_from_the_device():
    """Tensors without data cannot be read, so whatever works on them waits for no device."""
    view = seen(8, batch=2, generated=(5, 6))
    view = replace(view, allowed=view.allowed.to("meta"), generated=view.generated.to("meta"))
    after, changed = ADA.edit(torch.empty(2, 4, 1, 8, device="meta"), view)
    assert after.shape == (2, 4, 1, 8)
    assert changed.shape == (2, 4, 1)


def test_profiles_travel_as_json():
    assert methods.build(json.loads(json.dumps(methods.to_dict(ADA)))) == ADA
    assert "IAT profile of somewhere/tiny, 100 samples" in ADA.source
    ADA.check_model({**FACTS, "name_or_path": "a/copy"})
    with pytest.raises(ValueError, match="hidden_size is 64"):
        ADA.check_model({**FACTS, "hidden_size": 64})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hallucinated": [0.1] * 5}, "hallucinated must be 6 numbers, got 5"),
        ({"real": [0.1] * 7}, "real must be 6 numbers, got 7"),
        ({"real": [-0.1] * 6}, "real"),
        ({"ratios": [[1.0] * 3] * 6}, "ratios must be 6 layers of 4 heads"),
        ({"ratios": [[-1.0] * 4] * 6}, "ratios must be >= 0"),
        ({"model": {"model_type": "tiny"}}, "layers, num_heads"),
        ({"samples": 0}, "samples"),
    ],
)
def test_profiles_are_checked(wrong, message):
    right = {"model": FACTS, "samples": 1, "hallucinated": [0.1] * 6, "real": [0.2] * 6, "ratios": [RATIOS] * 6}
    IATProfile(**right)
    with pytest.raises(ValueError, match=message):
        IATProfile(**{**right, **wrong})


def test_a_profile_is_required():
    with pytest.raises(ValueError, match=r"is not known; measure it with `vlmopt calibrate --only iat`"):
        AdaptiveGeneratedText().check_model(FACTS)
    AdaptiveGeneratedText(alpha=0).check_model(FACTS)
    with pytest.raises(TypeError, match="profile must be IATProfile"):
        AdaptiveGeneratedText(profile=0.3)
