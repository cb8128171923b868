"""Evictions over several turns and images, prefixes and odd prompts, against the full cache with a mask per head."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

import vlmopt
from tests.families.test_generation_modes import V5, two_turns
from tests.support.evicted import Evicted, built, generate, gone
from tests.support.families import FAMILIES, GREEDY, Image
from tests.support.mechanism import LOGITS, Case, gap
from vlmopt import kv
from vlmopt.kv.base import Eviction

TOLERANCE = 1e-5
SNAP = kv.SnapKV(keep_ratio=0.4, recent=2, window=8)
METHODS = {
    "snap_kv": SNAP,
    "vl_cache": kv.VLCache(keep_ratio=0.4, recent=2),
    "key_diff": kv.KeyDiff(keep_ratio=0.4, recent=2, layer_budgets="pyramid"),
    "one_set": kv.SnapKV(keep_ratio=0.4, recent=2, window=8, per_head=False, mix=True),
}
methods = pytest.mark.parametrize("method", METHODS)
SETTINGS = {"max_new_tokens": 4, **GREEDY, **LOGITS}


def same(out, expected):
    assert torch.equal(out.sequences, expected.sequences)
    logits = torch.stack(expected.logits, 1)
    assert gap(torch.stack(out.logits, 1), logits) < TOLERANCE * float(logits.abs().max())


def turn(family, ids, **more):
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **family.token_types(ids), **more}


@pytest.mark.skipif(not V5, reason="transformers 4 does not forward a second turn's pixels")
@methods
@pytest.mark.parametrize("cut", ["", "pre", "progressive"])
@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_a_second_turn_with_an_image(name, cut, method):
    case = Evicted(FAMILIES[name], METHODS[method], cut)
    first, second = case.family.inputs([[5, Image(0), 7]]), case.family.inputs([[4, Image(0), 5]], seed=5)
    model, cache, old = case.model(), DynamicCache(), DynamicCache()
    said = model.generate(**first(), past_key_values=cache, **SETTINGS)
    before = gone(cache, first.ids.shape[1])
    reference = case.reference(first).evict(before)
    same(said, reference.generate(first(), past_key_values=old, **SETTINGS))
    ids = torch.cat([said.sequences, second.ids], 1)
    pixels = {k: v for k, v in second().items() if k.startswith("pixel") or k == "image_sizes"}
    inputs = turn(case.family, ids, **pixels)
    out = model.generate(**inputs, past_key_values=cache, **SETTINGS)
    after = gone(cache, ids.shape[1])
    assert all(bool((after[1][layer][..., : before[0]] >= left).all()) for layer, left in before[1].items())
    if cut:
        reference.remove(two_turns(Case(case.family, cut), first, second, said.sequences.shape[1]))
    same(out, reference.evict(before, after).generate(inputs, past_key_values=old, **SETTINGS))
    kept = [sum(entry["kept"]) for entry in vlmopt.report(model).kv]
    assert sum(kept) > 0


@methods
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_questions_about_one_evicted_prefix(name, method):
    """The image alone is read and evicted; each question goes on from a copy, and evicts no more of the image."""
    case = Evicted(FAMILIES[name], METHODS[method])
    batch = case.family.inputs([[5, Image(0), 1]])
    model, config = case.model(), case.family.build().config.get_text_config()
    cache, old = DynamicCache(config=config), DynamicCache()
    generate(model, batch, past_key_values=cache, max_new_tokens=1)
    before = gone(cache, batch.ids.shape[1])
    reference = case.reference(batch).evict(before)
    generate(reference, batch, past_key_values=old, max_new_tokens=1)
    for words in ([50, 51, 52], [60, 61, 62, 63, 64]):
        twin, other = copy.deepcopy(cache), copy.deepcopy(old)
        inputs = turn(case.family, torch.cat([batch.ids, torch.tensor([words])], 1))
        out = model.generate(**inputs, past_key_values=twin, **SETTINGS)
        after = gone(twin, inputs["input_ids"].shape[1])
        same(out, reference.evict(before, after).generate(inputs, past_key_values=other, **SETTINGS))


def test_a_later_question_costs_no_more_of_the_image(monkeypatch):
    """Layers that gave keys away for one question are those that the next one would ask: what is left is enough."""
    depth, asked = 6, []

    def sparsity(probe):
        turn, layer = divmod(len(asked), depth)
        asked.append(layer)
        return torch.full((len(probe.rows),), 0.1 if layer % 2 == turn % 2 else 0.9)

    monkeypatch.setattr(kv, "sparsity", sparsity)
    family, cache, kept = FAMILIES["llava"], DynamicCache(), []
    batch = family.inputs([[5, Image(0), 7], [5, Image(1), 7]])
    inputs, model = batch(), Evicted(family, METHODS["vl_cache"]).model()
    for word in (40, 140):
        said = model.generate(**inputs, past_key_values=cache, **SETTINGS).sequences
        kept.append([entry["kept"] for entry in vlmopt.report(model).kv])
        inputs = turn(family, torch.cat([said, torch.arange(word, word + 12).expand(2, -1)], 1))
    assert kept[0] == kept[1] == [[12, 12], [1, 1]] * 3  # 0.4 of 16, nine to one


@pytest.mark.parametrize("method", ["snap_kv", "key_diff", "one_set"])  # vl_cache asks the rows of the last pass
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_prefix_that_a_bare_forward_read_is_judged_like_the_whole_prompt(name, method):
    """Nothing of it is evicted before the question is there, and its patches are known."""
    case = Evicted(FAMILIES[name], METHODS[method])
    batch = case.family.inputs([[5, Image(0)]])
    words = torch.arange(50, 60)[None]  # as many rows as are read
    inputs = turn(case.family, torch.cat([batch.ids, words], 1))
    whole = {**batch(), **inputs}
    model, cache = case.model(), DynamicCache(config=case.family.build().config.get_text_config())
    at_once = gone(model.generate(**whole, **SETTINGS).past_key_values, inputs["input_ids"].shape[1])
    with torch.no_grad():
        model(**batch(), past_key_values=cache)
    out = model.generate(**inputs, past_key_values=cache, **SETTINGS)
    _, away = gone(out.past_key_values, inputs["input_ids"].shape[1])
    assert away.keys() == at_once[1].keys()
    assert all(torch.equal(away[layer], left) for layer, left in at_once[1].items())


@methods
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("rows", [[[5, Image(0)]], [[Image(0), 3], [2, Image(1), Image(2)]]])
def test_prompts_that_end_or_begin_with_an_image(name, method, rows):
    case = Evicted(FAMILIES[name], METHODS[method], "mid")
    batch = case.family.inputs(rows)
    out = generate(case.model(), batch)
    same(out, generate(case.reference(batch).evict(gone(out.past_key_values, batch.ids.shape[1])), batch))


@methods
def test_prompts_padded_on_the_right(method):
    case = Evicted(FAMILIES["llava"], METHODS[method])
    batch = case.family.inputs([[5, Image(0), 7], [3, Image(1), Image(2), 6], [9]], padding_side="right")
    out = generate(case.model(), batch)
    same(out, generate(case.reference(batch).evict(gone(out.past_key_values, batch.ids.shape[1])), batch))


@pytest.mark.parametrize("ratio", [1e-9, 0.999])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_budgets_at_the_ends(name, ratio):
    """A key stays where one competes; a budget of nearly all may be all."""
    case = Evicted(FAMILIES[name], kv.KeyDiff(keep_ratio=ratio, recent=2))
    batch = case.family.inputs([[5, Image(0), 7], [3, Image(1), 6], [9]])
    out = generate(case.model(), batch)
    cache = out.past_key_values
    if not hasattr(cache, "_vlmopt"):
        assert ratio > 0.9
        return
    same(out, generate(case.reference(batch).evict(gone(cache, batch.ids.shape[1])), batch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@methods
def test_half_precision_keeps_its_dtype(method, dtype):
    family = FAMILIES["qwen2_5_vl"]
    batch = family.inputs([[5, Image(0), 7], [3, Image(1), 6]])
    model = vlmopt.optimize(built(family, "sdpa").to(dtype), vlmopt.Policy(kv=METHODS[method]))
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch().items()}
    cache = model.generate(**inputs, **SETTINGS).past_key_values
    assert {layer.keys.dtype for layer in cache.layers} == {dtype}
    assert all(entry["slots_after"] < entry["slots_before"] for entry in vlmopt.report(model).kv)


def test_scores_of_another_shape_are_refused():
    class Odd(Eviction):
        name = "odd"

        def score(self, view):
            return view.keys[..., 0, 0]

    model = vlmopt.optimize(copy.deepcopy(FAMILIES["llava"].build()), vlmopt.Policy(kv=Odd()))
    with pytest.raises(ValueError, match=r"odd: score must return one value per key, \[B, Hk, n\] = \(1, .*got \(1, "):
        generate(model, FAMILIES["llava"].inputs([[5, Image(0), 7]]))


def test_scores_without_bounds_oust_nothing_that_is_protected():
    class Endless(Eviction):
        name = "endless"

        def score(self, view):
            scores = torch.full(view.keys.shape[:3], float("inf"))
            scores[..., ::2] = float("nan")
            return scores

    case = Evicted(FAMILIES["llava"], Endless(keep_ratio=0.2, recent=2))
    batch = case.family.inputs([[5, Image(0), 7]])
    _, away = gone(generate(case.model(), batch).past_key_values, batch.ids.shape[1])
    assert away
    assert not any(bool((left & ~batch.visual[:, None]).any()) for left in away.values())
