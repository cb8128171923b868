"""Corrections inside real models: equal to full attention matrices edited by hand, in every family, pruned or not."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import vlmopt
from tests.support.correction_oracle import Corrected, Row, Rule
from tests.support.families import FAMILIES, GREEDY, LAYERS, Image
from tests.support.mechanism import LOGITS, NEW_TOKENS, TOLERANCE, Case, forward, gap
from vlmopt.attention_fix import (
    AttentionFusion,
    GeneratedText,
    HeadGuided,
    ImageBoost,
    InformedTokens,
    VisionHeads,
    VisualSink,
)

DIMS, TAU = (3, 17), 1.6
EVERY = tuple(range(LAYERS))


def raise_by(alpha: float, values: Tensor, keys: Tensor) -> Tensor:
    return torch.where(keys, values + alpha * values.abs(), values)


def pai(row: Row) -> Tensor:
    return raise_by(0.5, row.values, row.image)


def vaf(row: Row) -> Tensor:
    return torch.where(row.image, 1.15 * row.values, torch.where(row.system, 0.95 * row.values, row.values))


def hgai(row: Row) -> Tensor:
    return torch.where(row.image, row.values + 0.5 * row.values.abs().mean(0, keepdim=True), row.values)


def iat(row: Row) -> Tensor:
    return raise_by(0.8, row.values, row.generated)


def var(row: Row) -> Tensor:
    out = row.values.clone()
    for h, a in enumerate(row.values):
        visual_sink, others = row.image & row.sink, row.image & ~row.sink
        mass, rest = a[row.image].sum(), a[others].sum()
        if not visual_sink.any() or not others.any() or mass < 0.05 or rest / mass < 0.3:
            continue
        moved = 0.6 * a[row.sink].sum()
        out[h] = torch.where(row.sink, 0.4 * a, torch.where(others, a * (1 + moved / rest), a))
    return out


def vhr(with_image: Tensor, without: Tensor) -> Tensor:
    distance, active = (with_image - without).norm(dim=-1), without.square().sum(-1)
    odd = (distance > distance.mean() + distance.std()) & (active > active.mean() + active.std())
    distance = torch.where(odd, 0.0, distance)
    return torch.where(distance > distance.median(), 1.5, 1.0)


VAR = VisualSink(layers="0:", dims=DIMS, tau=TAU, min_nonsink_ratio=0.3, min_visual_mass=0.05, min_nonsink_tokens=1)
METHODS: dict[str, tuple[Any, Rule]] = {
    "image_boost": (ImageBoost(alpha=0.5, layers="0:"), Rule("logits", "last", pai, EVERY)),
    "attention_fusion": (AttentionFusion(layers="1:5"), Rule("logits", "text", vaf, (1, 2, 3, 4))),
    "head_guided": (HeadGuided(layers="0:"), Rule("logits", "last", hgai, EVERY)),
    "generated_text": (GeneratedText(layers="0:"), Rule("logits", "last", iat, EVERY)),
    "visual_sink": (VAR, Rule("weights", "text", var, EVERY, DIMS, TAU)),
    "vision_heads": (VisionHeads(layers="0:"), Rule(layers=EVERY, gain=vhr)),
}
REQUIRED = [f for f in FAMILIES.values() if not f.extra]
GATED = {"qwen3_5"}  # no layer can be corrected
PLAIN = [f for f in REQUIRED if f.name not in GATED and f.name != "paligemma"]


def batch_of(family, prompts):
    return Case(family, "mid", "keep", prompts).batch


def layers_of(family):
    """Layers whose attention may be corrected."""
    config = family.build("sdpa").config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * LAYERS
    return tuple(i for i, kind in enumerate(kinds) if "attention" in kind and "linear" not in kind)


def rules_of(family, names):
    able = layers_of(family)
    return [replace(METHODS[n][1], layers=tuple(i for i in METHODS[n][1].layers if i in able)) for n in names]


def run(model, batch, **kwargs):
    return model.generate(**batch(), **{"max_new_tokens": NEW_TOKENS, **GREEDY, **LOGITS, **kwargs})


def compare(family, names, prompts, schedule=None, attn="sdpa", passthrough="exact"):
    case = Case(family, schedule or "mid", "keep", prompts)
    batch = case.batch
    oracle = Corrected(family.build("eager"), batch, rules_of(family, names))
    if schedule:
        oracle.remove(case.removal(batch))
    expected = oracle.generate(batch(), max_new_tokens=NEW_TOKENS, **GREEDY, **LOGITS)
    policy = vlmopt.Policy(
        prune=case.policy.prune if schedule else (), attention=[METHODS[n][0] for n in names if n in METHODS]
    )
    model = copy.deepcopy(family.build(attn))
    plain = torch.stack(run(model, batch).logits, 1)
    with vlmopt.optimized(model, policy):
        out = run(model, batch)
        report = vlmopt.report(model)
        uncached = run(model, batch, use_cache=False) if not schedule else None
    logits = torch.stack(out.logits, 1)
    assert torch.equal(out.sequences, expected.sequences)
    assert gap(logits, torch.stack(expected.logits, 1)) < TOLERANCE
    if uncached is not None and not family.hybrid:
        assert gap(torch.stack(uncached.logits, 1), logits) < 10 * TOLERANCE
    imaged = batch.visual.any(1)
    assert gap(logits[imaged], plain[imaged]) > 50 * TOLERANCE
    if not schedule and not imaged.all():
        assert torch.equal(logits[~imaged], plain[~imaged])
    return report


@pytest.mark.parametrize("prompts", ["one", "ragged"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_every_correction(family, name, prompts):
    report = compare(FAMILIES[family], [name], prompts)
    assert [entry["method"] for entry in report.corrections] == [name]


@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in PLAIN])
def test_a_boost_sinks_and_heads_together(family):
    compare(family, ["image_boost", "visual_sink", "vision_heads"], "ragged")


@pytest.mark.parametrize("schedule", ["pre", "mid", "progressive"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_masks_follow_token_identity_through_pruning(family, schedule):
    report = compare(FAMILIES[family], ["image_boost", "visual_sink", "vision_heads"], "ragged", schedule)
    assert report.applied
    assert len(report.corrections) == 3


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_kernels(attn):
    compare(FAMILIES["llava"], ["visual_sink", "image_boost"], "ragged", attn=attn)


def test_right_padding_in_a_bare_forward():
    family = FAMILIES["llava"]
    batch, oracle_rules = batch_of(family, "right"), rules_of(family, ["visual_sink"])
    expected = Corrected(family.build("eager"), batch, oracle_rules).forward(batch())
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), vlmopt.Policy(attention=[VAR])) as model:
        assert gap(forward(model, batch)[batch.real], expected[batch.real]) < TOLERANCE


@pytest.mark.parametrize("passthrough", ["exact", "fast"])
@pytest.mark.parametrize("name", ["image_boost", "visual_sink"])
def test_fast_decoding_equals_exact(name, passthrough):
    family, (method, _) = FAMILIES["qwen2_5_vl"], METHODS[name]
    batch = batch_of(family, "ragged")
    oracle = Corrected(family.build("eager"), batch, rules_of(family, [name]))
    expected = oracle.generate(batch(), max_new_tokens=NEW_TOKENS, **GREEDY, **LOGITS)
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), replace(method, passthrough=passthrough)) as model:
        out = run(model, batch)
    assert gap(torch.stack(out.logits, 1), torch.stack(expected.logits, 1)) < TOLERANCE


@pytest.mark.parametrize("method", [
    replace(VAR, recycle=0.0), ImageBoost(alpha=0.0), VisionHeads(strength=1.0),
    AttentionFusion(enhance=0.0, suppress=0.0),
], ids=lambda m: m.name)  # fmt: skip
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_neutral_settings_keep_every_bit(family, method):
    batch = batch_of(FAMILIES[family], "ragged")
    model = copy.deepcopy(FAMILIES[family].build("sdpa"))
    plain = run(model, batch)
    with vlmopt.optimized(model, method):
        out = run(model, batch)
        report = vlmopt.report(model)
    assert torch.equal(torch.stack(plain.logits), torch.stack(out.logits))
    assert {"what": method.name, "why": "changes nothing at these settings"} in report.skipped


def test_closed_gates_keep_every_bit():
    """A gate that no row passes changes nothing, to the bit, in prompts and while decoding."""
    batch = batch_of(FAMILIES["llava"], "ragged")
    model = copy.deepcopy(FAMILIES["llava"].build("sdpa"))
    plain = run(model, batch)
    with vlmopt.optimized(model, replace(VAR, min_visual_mass=1.0)):
        out = run(model, batch)
        report = vlmopt.report(model)
    assert torch.equal(torch.stack(plain.logits), torch.stack(out.logits))
    assert all(layer["edited"] == 0 for layer in report.corrections[0]["layers"])


def test_two_samples_in_sequence_are_independent():
    """Sinks of the first image must not be those of the second."""
    family = FAMILIES["qwen2_5_vl"]
    first, second = (family.inputs([[5, Image(k), 7]], seed=k) for k in (0, 1))
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), [VAR, METHODS["vision_heads"][0]]) as model:
        run(model, first)
        after = run(model, second)
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), [VAR, METHODS["vision_heads"][0]]) as model:
        fresh = run(model, second)
    assert torch.equal(torch.stack(after.logits), torch.stack(fresh.logits))


def test_layers_outside_are_left_alone():
    """Rows before the image and layers outside the range keep their bits at layer level."""
    family = FAMILIES["llava"]
    batch, model = batch_of(family, "one"), copy.deepcopy(FAMILIES["llava"].build("sdpa"))
    plain = model(**batch(), output_hidden_states=True).hidden_states
    with vlmopt.optimized(model, replace(METHODS["image_boost"][0], layers="2:4")):
        edited = model(**batch(), output_hidden_states=True).hidden_states
    for layer in range(3):
        assert torch.equal(plain[layer], edited[layer])
    assert torch.equal(plain[3][:, :-1], edited[3][:, :-1])
    assert not torch.equal(plain[3][:, -1], edited[3][:, -1])


def test_beams_and_several_returns():
    family, policy = FAMILIES["llava"], [VAR, METHODS["image_boost"][0], METHODS["vision_heads"][0]]
    batch = batch_of(family, "ragged")
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), policy) as model:
        cached = run(model, batch, num_beams=3, num_return_sequences=2)
        uncached = run(model, batch, num_beams=3, num_return_sequences=2, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    oracle = Corrected(family.build("eager"), batch, rules_of(family, ["visual_sink", "image_boost", "vision_heads"]))
    expected = oracle.generate(
        batch(), max_new_tokens=NEW_TOKENS, num_beams=3, num_return_sequences=2, **GREEDY, **LOGITS
    )
    assert torch.equal(cached.sequences, expected.sequences)


def test_assisted_decoding():
    family, policy = FAMILIES["llava"], [VAR, METHODS["image_boost"][0], METHODS["vision_heads"][0]]
    batch = family.inputs([[5, Image(0), 7]])
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), policy) as model:
        plain = model.generate(**batch(), max_new_tokens=8, **GREEDY)
        assisted = model.generate(**batch(), max_new_tokens=8, prompt_lookup_num_tokens=3, **GREEDY)
    assert torch.equal(plain, assisted)


@pytest.mark.parametrize("cut", [3, 8, 14])
def test_chunked_prefill(cut):
    """Rows are chosen by absolute position: the boundary may lie before, inside or behind the image."""
    family, policy = FAMILIES["llava"], [VAR, METHODS["image_boost"][0]]
    batch = family.inputs([[5, Image(0), 7]])
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), policy) as model:
        whole = run(model, batch)
        chunked = run(model, batch, prefill_chunk_size=cut)
    assert gap(torch.stack(whole.logits), torch.stack(chunked.logits)) < TOLERANCE


@pytest.mark.parametrize("cut", [3, 8, 14, 20])
def test_a_chunk_that_cuts_an_image_knows_the_rest_of_it(cut):
    """Budgets by image and choices among an image's tokens are those of the whole image, in a ragged batch too."""
    family = FAMILIES["llava"]
    batch = family.inputs([[5, Image(0), 7, Image(1), 3], [6, Image(2), 4]])
    var = replace(VAR, scope="per_image")
    for policy in (var, InformedTokens(alpha=1.0, layers="0:", local_block=-1, summary_block=-1)):
        with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), policy) as model:
            whole = run(model, batch)
            chunked = run(model, batch, prefill_chunk_size=cut)
        assert gap(torch.stack(whole.logits), torch.stack(chunked.logits)) < TOLERANCE


def test_a_cache_of_another_policy_is_reported():
    family = FAMILIES["llava"]
    batch, model = family.inputs([[5, Image(0), 7]]), copy.deepcopy(family.build("sdpa"))
    with torch.no_grad(), vlmopt.optimized(model, VAR):
        cache = model(**batch(), use_cache=True).past_key_values
    with torch.no_grad(), vlmopt.optimized(model, InformedTokens(layers="0:", local_block=-1, summary_block=-1)):
        model(input_ids=torch.tensor([[7, 8]]), past_key_values=cache)
        assert "filled before" in vlmopt.report(model).skipped[0]["why"]


@pytest.mark.parametrize(("prompts", "told"), [("one", True), ("unpadded", True), ("ragged", True), ("ragged", False)])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_static_cache(name, prompts, told):
    """Prompts without padding have no mask, which would hide the slots that are still empty.

    `generate` tells padding by its ids where it is not told.
    """
    family, policy = FAMILIES[name], [VAR, METHODS["image_boost"][0], METHODS["vision_heads"][0]]
    batch = batch_of(family, prompts)
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), policy) as model:
        dynamic = run(model, batch)
        given = batch if told else batch.untold
        static = run(model, given, cache_implementation="static", disable_compile=True)
    assert gap(torch.stack(dynamic.logits), torch.stack(static.logits)) < TOLERANCE


def test_a_second_turn_brings_a_second_image():
    """The state of the first turn is extended: prompt and second turn over one cache equal the long prompt."""
    family = FAMILIES["llava"]
    both = family.inputs([[5, Image(0), 7, Image(1), 4]])
    half = int((both.span[0] == 0).nonzero()[-1]) + 5
    pixels = both.inputs["pixel_values"]
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), VAR) as model, torch.no_grad():
        whole = model(**both(), use_cache=True).logits
        first = model(input_ids=both.ids[:, :half], pixel_values=pixels[:1], use_cache=True)
        second = model(input_ids=both.ids[:, half:], pixel_values=pixels[1:], past_key_values=first.past_key_values)
        marks = first.past_key_values._vlmopt_marks
    assert gap(second.logits, whole[:, half:]) < TOLERANCE
    assert marks.images == 2
    assert marks.tables["image", None].sum() == both.visual.sum()


def test_a_cache_of_the_unwrapped_model_is_reported():
    family = FAMILIES["llava"]
    batch, model = family.inputs([[5, Image(0), 7]]), copy.deepcopy(family.build("sdpa"))
    with torch.no_grad():
        cache = model(**batch(), use_cache=True).past_key_values
        with vlmopt.optimized(model, VAR):
            model(input_ids=torch.tensor([[7, 8]]), past_key_values=cache)
            assert "filled before" in vlmopt.report(model).skipped[0]["why"]
