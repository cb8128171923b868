"""VHR and head gains: which heads are chosen, by how much they grow, and what keeps its bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.row_views import FACTS, head_profile
from vlmopt import methods
from vlmopt.attention_fix import HeadGain, TextOnly, VisionHeads, scale_heads
from vlmopt.attention_fix.vision_heads import head_divergence, select_heads, token_divergence

DIVERGENCE = torch.tensor([[0.1, 0.2, 0.3, 5.0]])
ACTIVE = torch.tensor([[1.0, 1.0, 1.0, 50.0]])


def draw(batch=2, heads=8, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, heads, dim, generator=generator).unbind()


def chosen(mask):
    return [row.nonzero().flatten().tolist() for row in mask]


def test_outliers_by_hand():
    """Thresholds are 3.80 and 37.75; without head 3 the lower median is 0.1."""
    assert chosen(select_heads(DIVERGENCE, ACTIVE)) == [[1, 2]]
    assert chosen(select_heads(DIVERGENCE, torch.ones(1, 4))) == [[2, 3]]  # divergent, but not for want of an image
    assert chosen(select_heads(DIVERGENCE, ACTIVE, outliers=False)) == [[2, 3]]
    assert chosen(select_heads(torch.tensor([[0.1, 0.4, 0.2, 0.3]]), ACTIVE)) == [[1, 3]]  # active, but not divergent


def test_the_deviation_is_unbiased():
    """Biased, the threshold of divergence would be 3.15, not 3.61: between them lies nobody but a test."""
    divergence = torch.tensor([[0.0, 0.5, 1.0, 4.0, 3.6]])
    threshold = divergence.mean() + divergence.std()
    biased = divergence.mean() + divergence.std(unbiased=False)
    assert biased < 3.6 < threshold < 4.0
    assert chosen(select_heads(divergence, torch.tensor([[0.0, 0, 0, 0, 1.0]]))) == [[3, 4]]


def test_samples_have_thresholds_of_their_own():
    divergence, activity = DIVERGENCE.repeat(2, 1), torch.cat([ACTIVE, torch.ones(1, 4)])
    assert chosen(select_heads(divergence, activity)) == [[1, 2], [2, 3]]


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 7, 8, 28, 32])
def test_half_of_the_heads_are_chosen(heads):
    generator = torch.Generator().manual_seed(heads)
    divergence = torch.stack([torch.randperm(heads, generator=generator) + 1.0 for _ in range(16)])
    selected = select_heads(divergence, torch.ones(16, heads))
    assert selected.sum(1).tolist() == [heads // 2] * 16
    assert chosen(selected) == [sorted(row.topk(heads // 2).indices.tolist()) for row in divergence]
    assert not select_heads(torch.full((2, heads), 0.7), torch.ones(2, heads)).any()


def test_divergence_is_a_distance_in_fp32():
    one, other = draw()
    want = (one.double() - other.double()).square().sum(-1).sqrt()
    assert (head_divergence(one, other) - want).abs().max() < 1e-6
    large = torch.full((1, 2, 16), 3e4, dtype=torch.float16)
    assert (head_divergence(large, -large) - 240000).abs().max() < 0.1


def test_gains_are_the_strength_or_one():
    heads, text_only = draw()
    gain = VisionHeads().gain(heads, text_only, 5)
    want = select_heads((heads - text_only).norm(dim=-1), text_only.square().sum(-1))
    assert gain.dtype == torch.float32
    assert torch.equal(gain, torch.where(want, 1.5, 1.0))
    assert torch.equal(VisionHeads(strength=2).gain(heads, text_only, 5), torch.where(want, 2.0, 1.0))
    half = VisionHeads().gain(heads.half() * 1000, text_only.half() * 1000, 5)  # squares beyond fp16
    assert half.gt(1).sum(1).ge(3).all()


def test_outputs_that_do_not_depend_on_the_image_are_left_alone():
    heads, _ = draw()
    assert VisionHeads().gain(heads, heads, 5).eq(1).all()


def test_a_batch_is_its_samples():
    heads, text_only = draw(batch=4)
    together = VisionHeads().gain(heads, text_only, 5)
    alone = [VisionHeads().gain(heads[i : i + 1], text_only[i : i + 1], 5) for i in range(4)]
    assert torch.equal(together, torch.cat(alone))
    assert len({tuple(row) for row in together.tolist()}) > 1


def test_gains_wait_for_no_device():
    heads = torch.empty(2, 8, 16, device="meta")
    assert VisionHeads().gain(heads, heads, 5).device.type == "meta"
    static = torch.empty(2, 4, 16, device="meta")
    for correction in (VisionHeads(mode="static", profile=head_profile()), HeadGain(profile=head_profile())):
        assert correction.gain(static, None, 5).device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_strength_of_one_keeps_every_bit(dtype):
    correction = VisionHeads(strength=1)
    assert correction.is_identity
    assert not VisionHeads().is_identity
    assert not VisionHeads(strength=1, trace=True).is_identity  # somebody wants to read something
    heads, text_only = (t.to(dtype) for t in draw())
    out = heads[:, None]
    assert torch.equal(scale_heads(out, correction.gain(heads, text_only, 5)), out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_chosen_heads_grow_and_the_others_keep_their_bits(dtype):
    heads, text_only = (t.to(dtype) for t in draw())
    out = torch.randn(2, 3, 8, 16).to(dtype)
    gain = VisionHeads(strength=2).gain(heads, text_only, 5)
    rows = torch.tensor([[False, False, True], [False, True, False]])
    scaled = scale_heads(out, gain, rows)
    grown = rows[:, :, None] & (gain == 2)[:, None]
    assert torch.equal(scaled[grown], out[grown] * 2)
    assert torch.equal(scaled[~grown], out[~grown])


def test_the_layer_grows_by_what_its_heads_write():
    """(strength - 1) * sum over chosen heads of A_i W_O[i] is what the output projection gains."""
    heads, text_only = (t.double() for t in draw())
    weight = torch.randn(8, 16, 24, dtype=torch.float64)
    gain = VisionHeads(strength=1.75).gain(heads, text_only, 5)
    before, after = (torch.einsum("bhd,hdo->bo", t, weight) for t in (heads, scale_heads(heads[:, None], gain)[:, 0]))
    for sample in range(2):
        written = sum(heads[sample, i] @ weight[i] for i in gain[sample].gt(1).nonzero().flatten())
        assert (after[sample] - before[sample] - 0.75 * written).abs().max() < 1e-12


def test_divergence_of_a_token():
    layers = [torch.tensor([[1.0, 5, 3, 2]]), torch.tensor([[0.5, 0.1, 0.2, 4]])]
    assert token_divergence(layers, 1).tolist() == [9.0]
    assert token_divergence(layers, 2).tolist() == [12.5]
    assert token_divergence(layers, 99).allclose(torch.tensor([15.8]))
    assert token_divergence(torch.rand(3, 5, 4), 2).shape == (5,)


def test_layers_are_those_of_the_paper():
    assert VisionHeads().at(32) == {1, *range(18, 32)}
    assert VisionHeads().needs == {TextOnly()}


def test_a_profile_chooses_without_a_second_pass():
    profile = head_profile()
    correction = VisionHeads(mode="static", profile=profile)
    assert not correction.needs
    gain = correction.gain(torch.randn(3, 4, 16), None, 5)
    want = sorted(sorted(range(4), key=profile.divergence[5].__getitem__)[2:])
    assert chosen(gain > 1) == [want] * 3
    assert torch.equal(gain, torch.where(gain > 1, 1.5, 1.0))
    assert "head profile of somewhere/tiny" in correction.source
    assert methods.build(methods.to_dict(correction)) == correction
    with pytest.raises(ValueError, match="layers is 9"):
        correction.check_model({**FACTS, "layers": 9})


def test_a_profile_and_the_mode_go_together():
    for wrong in ({"mode": "static"}, {"profile": head_profile()}):
        with pytest.raises(ValueError, match="mode='static' needs a profile"):
            VisionHeads(**wrong)
    with pytest.raises(TypeError, match="profile must be"):
        VisionHeads(mode="static", profile=[1.0])
    for wrong in (0.0, 4.5):
        with pytest.raises(ValueError, match="strength"):
            VisionHeads(strength=wrong)


@pytest.mark.parametrize("criterion", ["visual_mass", "nonsink_mass", "divergence"])
def test_head_gain_follows_what_was_measured(criterion):
    profile = head_profile()
    correction = HeadGain(profile=profile, strength=3, criterion=criterion)
    kappa = profile.gain_map(criterion)
    for layer in range(6):
        gain = correction.gain(torch.randn(2, 4, 16, dtype=torch.bfloat16), None, layer)
        assert gain.dtype == torch.float32
        assert torch.equal(gain, (1 + 2 * kappa[layer]).expand(2, 4))
    assert kappa.min() == 0
    assert kappa.max() == 1
    assert not correction.needs


def test_head_gain_needs_a_profile_of_the_model():
    correction = HeadGain(profile=head_profile())
    assert HeadGain(profile=head_profile(), strength=1).is_identity
    assert not correction.is_identity
    assert replace(correction, strength=1).gain(torch.randn(2, 4, 16), None, 3).eq(1).all()
    assert methods.build(methods.to_dict(correction)) == correction
    correction.check_model(FACTS)
    with pytest.raises(ValueError, match="model_type is 'other'"):
        correction.check_model({**FACTS, "model_type": "other"})
    with pytest.raises(TypeError, match="profile"):
        HeadGain()
    with pytest.raises(TypeError, match="profile must be HeadProfile"):
        HeadGain(profile=None)
