"""VAR computed in every way there is: the same output, alone, in a batch, in pieces and in any order of tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.support.partial_attention import partition_attention
from tests.support.redistribution import redistribute_merge
from tests.unit.test_attention_rows import causal
from tests.unit.test_visual_sink import VAR, Scene
from vlmopt.attention_fix import correct_rows


def strategies(scene, recycle=0.6):
    """Outputs [B, R, H, D] of the ways to compute the same: merged parts, a correction of the output, a bias."""
    sink, nonsink = scene.sink, scene.image & ~scene.sink
    parts = [
        partition_attention(scene.query, scene.key, scene.value, keys, None, 0.3)
        for keys in (~sink & ~nonsink, nonsink, sink, sink & scene.image)
    ]
    merged, is_open = redistribute_merge(*parts[:3], parts[3][1], recycle=recycle)
    yield "merge", merged.transpose(1, 2)

    weights = scene.weights()
    m_sink, m_nonsink = ((weights * keys[:, None, None]).sum(-1) for keys in (sink, nonsink))
    plain, lost = (scene.spread(w).transpose(1, 2) for w in (weights, weights * sink[:, None, None]))
    change = recycle * (m_sink[..., None] * parts[1][0] - lost)
    yield "correction", torch.where(is_open[..., None], plain + change, plain).transpose(1, 2)

    bias = torch.zeros_like(weights)
    bias += torch.where(is_open[..., None], math.log(1 - recycle) * sink[:, None, None].double(), 0.0)
    bias += torch.where(is_open, (1 + recycle * m_sink / m_nonsink).log(), 0.0)[..., None] * nonsink[:, None, None]
    mask = bias.masked_fill(~scene.allowed, -torch.inf)
    yield "bias", correct_rows(scene.query, scene.key, scene.value, mask, 0.3, [])[0]


@pytest.mark.parametrize("groups", [1, 4, 7])
def test_strategies_agree_in_double_precision(groups):
    for seed in range(3):
        scene = Scene(seed, heads=2 * groups)
        before = scene.weights()
        after, changed = VAR.edit(before, scene.view)
        want = scene.spread(torch.where(changed[..., None], after, before))
        assert 0 < changed.sum() < changed.numel()
        rows, which = scene.run(VAR)
        assert torch.equal(which, changed)
        assert (rows - want).abs().max() < 1e-12
        for name, got in strategies(scene):
            assert (got - want).abs().max() < 1e-12, name


def test_merged_parts_without_a_visual_sink_are_left_alone():
    scene = Scene()
    bos = scene.sink & ~scene.image
    parts = [
        partition_attention(scene.query, scene.key, scene.value, keys, None, 0.3)
        for keys in (~bos & ~scene.image, scene.image, bos, bos & scene.image)
    ]
    got, is_open = redistribute_merge(*parts[:3], parts[3][1])
    assert not is_open.any()
    assert (got.transpose(1, 2) - scene.spread(scene.weights())).abs().max() < 1e-12
    nothing = partition_attention(scene.query, scene.key, scene.value, torch.zeros_like(bos), None, 0.3)
    got, is_open = redistribute_merge(nothing, nothing, nothing, nothing[1])
    assert got.eq(0).all()
    assert not is_open.any()


def test_strategies_agree_in_half_precision():
    scene = Scene(dtype=torch.bfloat16)
    rows, which = scene.run(VAR)
    double = Scene()
    double.query, double.key, double.value = (t.double() for t in (scene.query, scene.key, scene.value))
    want, changed = double.run(VAR)
    assert torch.equal(which, changed)
    assert rows.dtype == torch.bfloat16
    rounding = want.abs() * 2**-8  # of the output alone
    assert ((rows - want).abs() <= rounding + 1e-5).all()
    parts = list(strategies(scene))
    assert (parts[0][1] - want).abs().max() < 2e-3


def test_shared_keys_equal_repeated_keys():
    for heads, kv_heads in ((4, 4), (8, 2), (7, 1)):
        scene = Scene(1, heads, kv_heads)
        got, _ = scene.run(VAR)
        scene.key, scene.value = (t.repeat_interleave(heads // kv_heads, 1) for t in (scene.key, scene.value))
        assert (got - scene.run(VAR)[0]).abs().max() < 1e-12


def test_left_padding_does_not_matter():
    scene = Scene(2, batch=1)
    want, changed = scene.run(VAR)
    pad = 5
    noise = torch.full((1, 2, pad, 8), 7.0, dtype=torch.float64)
    key, value = (torch.cat([noise, t], 2) for t in (scene.key, scene.value))
    valid = torch.arange(45)[None] >= pad
    view = replace(
        scene.view,
        allowed=causal(4, 45, 41)[None, None] & valid[:, None, None],
        image=torch.nn.functional.pad(scene.image, (pad, 0)),
        marks={"sink": torch.nn.functional.pad(scene.sink, (pad, 0), value=True)},  # a mark on padding has no weight
    )
    got, which = correct_rows(scene.query, key, value, valid, 0.3, [(VAR, view)])
    assert torch.equal(which, changed)
    assert (got - want).abs().max() < 1e-12
    assert VAR.measure(torch.nn.functional.pad(scene.weights(), (pad, 0)), view)["sinks"] == scene.sink.sum()


def test_decoding_equals_a_longer_prefill():
    """The last row alone, and in pieces, with what a prompt's marks say of a generated key: nothing."""
    scene = Scene(3)
    whole, _ = scene.run(VAR)
    last = replace(scene.view, allowed=scene.allowed[:, :, -1:], rows=scene.view.rows[:, -1:])
    step, _ = correct_rows(scene.query[:, :, -1:], scene.key, scene.value, None, 0.3, [(VAR, last)])
    assert (step - whole[:, -1:]).abs().max() < 1e-12
    assert (scene.run(VAR, budget=1)[0] - whole).abs().max() < 1e-12


def test_order_of_the_image_does_not_matter():
    scene = Scene(4)
    want, changed = scene.run(VAR)
    order = torch.arange(40)
    order[14:22] = order[14:22].flip(0)  # inside the image of either sample
    scene.key, scene.value = scene.key[:, :, order], scene.value[:, :, order]
    scene.view = replace(scene.view, image=scene.image[:, order], marks={"sink": scene.sink[:, order]})
    got, which = scene.run(VAR)
    assert torch.equal(which, changed)
    assert (got - want).abs().max() < 1e-12
