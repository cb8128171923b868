"""Boosts of visual keys (PAI, VAF, HGAI): golden vectors, signs, attention in fp64, and what they leave alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.row_views import FACTS, close, edited, head_profile, iat_profile, seen
from vlmopt import methods
from vlmopt.attention_fix import (
    AdaptiveGeneratedText,
    AttentionFusion,
    GeneratedText,
    HeadGuided,
    ImageBoost,
    InformedTokens,
    correct_rows,
)

BOOSTS = {
    "pai": ImageBoost(),
    "vaf": AttentionFusion(),
    "vaf_safe": AttentionFusion(sign_safe=True),
    "hgai": HeadGuided(),
    "paint": InformedTokens(),
    "iat": GeneratedText(),
}
NEUTRAL = {
    "pai": ImageBoost(alpha=0),
    "vaf": AttentionFusion(enhance=0, suppress=0),
    "hgai": HeadGuided(alpha=0),
    "paint": InformedTokens(alpha=0, beta=0),
    "iat": GeneratedText(alpha=0),
    "adaiat": AdaptiveGeneratedText(alpha=0, profile=iat_profile()),
}
KEYS = {"image": range(2, 8), "local": (2, 3, 4), "summary": (6,), "system": (0, 1), "generated": (10, 11)}


def change(name, z, key):
    """What each boost adds to the logits z [H] of one key; in plain numbers."""
    size = [abs(value) for value in z]
    if name == "pai":
        return [0.4 * s * (key in KEYS["image"]) for s in size]
    if name == "hgai":
        return [0.5 * sum(size) / len(size) * (key in KEYS["image"])] * len(z)
    if name == "paint":
        return [(0.5 * (key in KEYS["local"]) + 0.3 * (key in KEYS["summary"])) * s for s in size]
    if name == "iat":
        return [0.8 * s * (key in KEYS["generated"]) for s in size]
    rate = 0.15 * (key in KEYS["image"]) - 0.05 * (key in KEYS["system"])
    return [rate * (abs(value) if name == "vaf_safe" else value) for value in z]


def inputs(heads, kv_heads, rows, width, dtype=torch.float64, size=1.0):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, rows, 8, generator=generator, dtype=torch.float64) * size
    key = torch.randn(2, kv_heads, width, 8, generator=generator, dtype=torch.float64) * size
    value = torch.randn(2, kv_heads, width, 5, generator=generator, dtype=torch.float64)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def plain(name, query, key, value, allowed):
    """Attention [B, R, H, Dv] with repeated keys, logits changed key by key; allowed Bool[B, R, K]."""
    heads = query.shape[1]
    key, value = (t.repeat_interleave(heads // t.shape[1], 1) for t in (key, value))
    logits = torch.einsum("bhrd,bhkd->bhrk", query, key) * 0.5
    for b in range(len(logits)):
        for r in range(logits.shape[2]):
            for k in range(logits.shape[3]):
                logits[b, :, r, k] += torch.tensor(change(name, logits[b, :, r, k].tolist(), k), dtype=logits.dtype)
    weights = logits.masked_fill(~allowed[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bhrk,bhkd->brhd", weights, value)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("name", BOOSTS)
def test_rows_equal_attention_with_changed_logits(name, kv_heads):
    query, key, value = inputs(4, kv_heads, 2, 12)
    allowed = torch.ones(2, 2, 12, dtype=torch.bool).tril(10)  # the first row does not see the last key
    allowed[1, :, :3] = False  # the second sample is padded on the left, over two system tokens and a patch
    view = seen(12, batch=2, rows=2, allowed=allowed[:, None], **KEYS)
    out, changed = correct_rows(query, key, value, allowed[:, None], 0.5, [(BOOSTS[name], view)])
    assert (out - plain(name, query, key, value, allowed)).abs().max() < 1e-13
    assert changed.all()


@pytest.mark.parametrize("name", BOOSTS)
def test_only_rows_that_may_be_edited_change(name):
    query, key, value = inputs(4, 2, 3, 12)
    mask = torch.ones(1, 1, 3, 12, dtype=torch.bool)
    may = torch.tensor([[False, False, True], [False, True, False]])
    view = seen(12, batch=2, rows=3, allowed=mask, may=may, **KEYS)
    base, none = correct_rows(query, key, value, mask, 0.5, [])
    out, changed = correct_rows(query, key, value, mask, 0.5, [(BOOSTS[name], view)])
    assert torch.equal(changed, may[:, None].expand(2, 4, 3))
    assert not none.any()
    assert torch.equal(out[~may], base[~may])
    assert (out[may] - base[may]).abs().amax(-1).gt(1e-6).all()


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_settings_edit_nothing(name):
    correction = NEUTRAL[name]
    assert correction.is_identity
    values = torch.randn(2, 4, 2, 12)
    view = seen(12, batch=2, rows=2, **{key: KEYS[key] for key in ("image", "system", "generated")})  # nothing chosen
    _, changed = correction.edit(values.softmax(-1) if correction.stage == "weights" else values, view)
    assert not changed.any()
    assert not any(c.is_identity for c in BOOSTS.values())


@pytest.mark.parametrize("name", ["pai", "vaf", "vaf_safe", "hgai", "paint"])
def test_rows_that_see_no_image_are_left_alone(name):
    values = torch.randn(1, 4, 2, 12)
    allowed = torch.ones(1, 1, 2, 12, dtype=torch.bool)
    allowed[:, :, 0, 2:8] = False  # a sliding window has passed the image
    _, changed = BOOSTS[name].edit(values.where(allowed, torch.finfo().min), seen(12, rows=2, allowed=allowed, **KEYS))
    assert changed[0].tolist() == [[False, True]] * 4
    gone = dict.fromkeys(KEYS, ()) | {"system": (0, 1)}
    assert not BOOSTS[name].edit(values, seen(12, rows=2, **gone))[1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", BOOSTS)
def test_large_logits_stay_finite(name, dtype):
    query, key, value = inputs(4, 2, 2, 12, dtype, size=8.0)  # logits up to about 600
    allowed = torch.ones(2, 1, 2, 12, dtype=torch.bool).tril(10)
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    view = seen(12, batch=2, rows=2, allowed=allowed, **KEYS)
    strong = replace(BOOSTS[name], **{key: 1.0 for key in ("alpha", "beta", "enhance") if hasattr(BOOSTS[name], key)})
    out, _ = correct_rows(query, key, value, mask, 0.5, [(strong, view)])
    assert out.isfinite().all()
    assert (out[0, 0].abs() <= value[0, :, :11].abs().amax() * 1.01).all()  # a mean of what the row may see


@pytest.mark.parametrize("name", BOOSTS)
def test_nothing_is_read_back_from_the_device(name):
    """Tensors without data cannot be read, so whatever works on them waits for no device."""
    view = seen(12, batch=2, rows=2, **KEYS)
    names = ("allowed", "rows", "image", "span", "system", "generated")
    bare = {key: getattr(view, key).to("meta") for key in names}
    view = replace(view, **bare, marks={key: mask.to("meta") for key, mask in view.marks.items()})
    after, changed = BOOSTS[name].edit(torch.empty(2, 4, 2, 12, device="meta"), view)
    assert after.shape == (2, 4, 2, 12)
    assert changed.shape == (2, 4, 2)


def test_layers_are_those_of_the_papers():
    assert ImageBoost().at(32) == InformedTokens().at(32) == set(range(2, 32))
    assert AttentionFusion().at(32) == set(range(9, 15))
    assert HeadGuided().at(32) == GeneratedText().at(32) == set(range(5, 18))


def test_pai_by_hand():
    row = [1.0, 0.5, -0.4, 0.2, 0.0]
    assert close(edited(ImageBoost(alpha=0.5), row, seen(5, image=(1, 2, 4))), [1.0, 0.75, -0.2, 0.2, 0.0])


def test_signs_of_vaf():
    row, view = [2.0, -2.0, 2.0, -2.0, 1.0], seen(5, image=(0, 1), system=(2, 3))
    assert close(edited(AttentionFusion(), row, view), [2.3, -2.3, 1.9, -1.9, 1.0])  # -2.3: less attention, not more
    assert close(edited(AttentionFusion(sign_safe=True), row, view), [2.3, -1.7, 1.9, -2.1, 1.0])
    positive = torch.rand(1, 4, 1, 5)
    safe, published = AttentionFusion(sign_safe=True).edit(positive, view), AttentionFusion().edit(positive, view)
    assert torch.equal(safe[0], published[0])


@pytest.mark.parametrize("name", ["pai", "vaf_safe", "hgai", "paint"])
def test_attention_to_what_is_boosted_never_falls(name):
    view = seen(12, batch=2, rows=2, **KEYS)
    keys = view.marks["local"] if name == "paint" else view.image
    logits = torch.randn(2, 4, 2, 12, dtype=torch.float64) * 4
    before = -1.0
    for strength in (0.0, 0.1, 0.3, 0.5, 0.7, 1.0):
        setting = {"enhance": strength} if name == "vaf_safe" else {"alpha": strength}
        after, _ = replace(BOOSTS[name], **setting).edit(logits, view)
        mass = (after.softmax(-1) * keys[:, None, None]).sum(-1)
        assert torch.allclose(after.softmax(-1).sum(-1), torch.ones((), dtype=torch.float64))
        assert (mass >= before).all()
        before = mass


def test_hgai_adds_the_same_to_every_head():
    logits = torch.randn(2, 4, 2, 12, dtype=torch.float64)
    after, _ = HeadGuided().edit(logits, seen(12, batch=2, rows=2, **KEYS))
    added = after - logits
    assert (added - added[:, :1]).abs().max() < 1e-15
    assert (added[..., 2:8] > 0).all()
    assert (added[..., 8:] == 0).all()


def test_hgai_averages_over_heads_that_see_the_key():
    logits = torch.tensor([[4.0, 1.0], [2.0, torch.finfo().min]])[None, :, None]  # [1, 2, 1, 2]
    allowed = torch.tensor([[True, True], [True, False]])[None, :, None]
    after, changed = HeadGuided(alpha=0.5).edit(logits, seen(2, image=(0, 1), allowed=allowed))
    assert after[0, :, 0].tolist() == [[5.5, 1.5], [3.5, torch.finfo().min]]
    assert changed.all()


def test_paint_with_all_patches_local_is_pai():
    keys = {**KEYS, "local": KEYS["image"], "summary": ()}
    view, logits = seen(12, batch=2, rows=2, **keys), torch.randn(2, 4, 2, 12)
    for gain in (None, head_profile()):
        paint = InformedTokens(alpha=0.4, head_gain=gain).edit(logits, view)
        pai = ImageBoost(alpha=0.4, head_gain=gain).edit(logits, view)
        assert all(torch.equal(a, b) for a, b in zip(paint, pai, strict=True))


@pytest.mark.parametrize("boost", [ImageBoost, InformedTokens])
def test_heads_get_their_share_of_the_boost(boost):
    profile = head_profile()
    kappa = profile.gain_map()[3]
    assert kappa.eq(0).any()
    assert kappa.gt(0).any()
    logits, view = torch.randn(2, 4, 2, 12), seen(12, batch=2, rows=2, **KEYS)
    whole, _ = boost().edit(logits, view)
    after, changed = boost(head_gain=profile).edit(logits, view)
    assert torch.allclose(after - logits, (whole - logits) * kappa[:, None, None], atol=1e-6)
    assert changed.any(-1).tolist() == [kappa.gt(0).tolist()] * 2  # the others keep the kernel's bits
    assert "head profile of somewhere/tiny" in boost(head_gain=profile).source
    assert boost().source is None


@pytest.mark.parametrize("boost", [ImageBoost, InformedTokens])
def test_a_head_profile_belongs_to_a_model(boost):
    correction = boost(head_gain=head_profile())
    correction.check_model({**FACTS, "name_or_path": "a/copy"})
    with pytest.raises(ValueError, match="num_heads is 8"):
        correction.check_model({**FACTS, "num_heads": 8})
    assert methods.build(methods.to_dict(correction)) == correction
    with pytest.raises(TypeError, match="head_gain must be"):
        boost(head_gain=0.5)


def test_boosts_exclude_each_other():
    groups = {name: correction.group for name, correction in BOOSTS.items()}
    assert len({groups[name] for name in ("pai", "vaf", "hgai", "paint")}) == 1
    assert groups["iat"] == AdaptiveGeneratedText.group != groups["pai"]
    assert "" not in groups.values()


@pytest.mark.parametrize("name", BOOSTS)
def test_settings_are_checked(name):
    strength = "enhance" if "vaf" in name else "alpha"
    with pytest.raises(ValueError, match=strength):
        replace(BOOSTS[name], **{strength: -0.1})
    with pytest.raises(ValueError, match="watchdog must be one of off, mark, stop"):
        replace(BOOSTS[name], watchdog="bark")
