"""What `generate` can do after keys were evicted: beams, returns, turns, chunks, copies, crops; what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import DynamicCache, StaticCache

import vlmopt
from tests.support.evicted import Evicted, generate, gone
from tests.support.families import FAMILIES, GREEDY, Image
from tests.support.mechanism import IN_CHUNKS, LOGITS, gap, stored_lengths
from tests.support.tiny import SPECIAL
from vlmopt import kv
from vlmopt.pruning import FastV, Uniform
from vlmopt.runtime.component import Components

TOLERANCE = 1e-5
SNAP = kv.SnapKV(keep_ratio=0.4, recent=2, window=8)
KEYS = kv.KeyDiff(keep_ratio=0.3, recent=2)
NAMES = ["qwen2_5_vl", "llava", "gemma3"]
CUTS = ["", "pre", "progressive"]
CASES = [pytest.param(Evicted(FAMILIES[n], SNAP, c), id=f"{n}-{c or 'whole'}") for n in NAMES for c in CUTS]
cases = pytest.mark.parametrize("case", CASES)
ROWS = [[5, Image(0), 7], [3, Image(1), 6]]
MODES = {
    "beams": {"num_beams": 3, "do_sample": False},
    "beams_two_returned": {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
    "three_samples": {"do_sample": True, "num_return_sequences": 3, "top_k": 0, "temperature": 1.0},
}


def same(out, expected, tolerance=TOLERANCE):
    assert torch.equal(out.sequences, expected.sequences)
    assert gap(torch.stack(out.logits, 1), torch.stack(expected.logits, 1)) < tolerance


@pytest.mark.parametrize("mode", MODES)
@cases
def test_beams_and_samples(case, mode):
    batch, settings = case.family.inputs(ROWS), {**MODES[mode], "max_new_tokens": 5, "suppress_tokens": SPECIAL}
    model, end = case.model(), batch.ids.shape[1]
    torch.manual_seed(7)
    out = model.generate(**batch(), **settings, return_dict_in_generate=True)
    end, away = gone(out.past_key_values, end)
    times = len(out.past_key_values.layers[0].keys) // len(batch.ids)
    away = {layer: left[::times] for layer, left in away.items()}
    torch.manual_seed(7)
    assert torch.equal(out.sequences, case.reference(batch).evict((end, away)).generate(batch(), **settings))


@cases
def test_a_second_turn_is_evicted_anew(case):
    """The budget counts the keys of all turns; what has left stays away."""
    batch = case.family.inputs(ROWS[:1])
    cache, model = DynamicCache(config=case.family.build().config.get_text_config()), case.model()
    first = generate(model, batch, past_key_values=cache)
    end, away = gone(cache, batch.ids.shape[1])
    kept = vlmopt.report(model).kv
    reference = case.reference(batch).evict((end, away))
    old = DynamicCache()
    same(first, generate(reference, batch, past_key_values=old))
    ids = torch.cat([first.sequences, torch.arange(40, 52)[None]], 1)
    turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **case.family.token_types(ids)}
    settings = {"max_new_tokens": 5, **GREEDY, **LOGITS}
    second = model.generate(**turn, past_key_values=cache, **settings)
    later, left = gone(cache, ids.shape[1])
    assert all(bool((left[layer][..., :end] >= away[layer]).all()) for layer in away)  # once gone, gone
    reference.evict((end, away), (later, left))
    same(second, reference.generate(turn, past_key_values=old, **settings))
    visual = [entry["kept"] for entry in kept]
    assert [entry["kept"] for entry in vlmopt.report(model).kv] == visual  # of the same image, the same share
    assert cache.get_seq_length() == second.sequences.shape[1] - 1


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_second_turn_in_a_padded_batch(name):
    case = Evicted(FAMILIES[name], SNAP)
    batch = case.family.inputs([[5, Image(0), 7], [9, Image(1), 12]])
    model, cache, old = case.model(), DynamicCache(), DynamicCache()
    first = generate(model, batch, past_key_values=cache)
    end, away = gone(cache, batch.ids.shape[1])
    reference = case.reference(batch).evict((end, away))
    same(first, generate(reference, batch, past_key_values=old))
    ids = torch.cat([first.sequences, torch.arange(40, 46).expand(2, -1)], 1)
    mask = torch.cat([batch.inputs["attention_mask"], torch.ones(2, ids.shape[1] - end, dtype=torch.long)], 1)
    turn = {"input_ids": ids, "attention_mask": mask, **case.family.token_types(ids)}
    settings = {"max_new_tokens": 5, **GREEDY, **LOGITS}
    second = model.generate(**turn, past_key_values=cache, **settings)
    reference.evict((end, away), gone(cache, ids.shape[1]))
    same(second, reference.generate(turn, past_key_values=old, **settings))


@IN_CHUNKS
@pytest.mark.parametrize("method", [SNAP, kv.VLCache(keep_ratio=0.4, recent=2)], ids=["snap_kv", "vl_cache"])
def test_chunked_prefill_is_judged_by_its_last_chunk(method):
    case = Evicted(FAMILIES["llava"], method)
    batch = case.family.inputs(ROWS[:1])
    out = generate(case.model(), batch, prefill_chunk_size=9)
    away = gone(out.past_key_values, batch.ids.shape[1])
    assert away[1]
    same(out, generate(case.reference(batch).evict(away), batch))


@IN_CHUNKS
@pytest.mark.parametrize("cut", ["", "pre"])
def test_chunked_prefill(cut):
    case = Evicted(FAMILIES["llava"], kv.KeyDiff(keep_ratio=0.4, recent=2), cut)
    batch = case.family.inputs(ROWS[:1])
    whole = generate(case.model(), batch)
    out = generate(case.model(), batch, prefill_chunk_size=9)
    reference = case.reference(batch)
    if not cut:  # by the same keys; cuts in chunks are those of each chunk
        same(out, whole)
        same(out, generate(reference.evict(gone(out.past_key_values, batch.ids.shape[1])), batch))
    assert len(set(stored_lengths(out.past_key_values))) == 1
    assert stored_lengths(out.past_key_values)[0] < batch.ids.shape[1]


@cases
def test_a_copied_cache_goes_on_by_itself(case):
    """One prompt, two questions: the second begins from a copy of the cache behind the image."""
    batch = case.family.inputs(ROWS[:1])
    model, cache = case.model(), DynamicCache(config=case.family.build().config.get_text_config())
    first = generate(model, batch, past_key_values=cache)
    twins = [copy.deepcopy(cache)]
    answers = []
    for twin in (*twins, cache):
        ids = torch.cat([first.sequences, torch.arange(40, 46)[None]], 1)
        turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **case.family.token_types(ids)}
        answers.append(model.generate(**turn, past_key_values=twin, max_new_tokens=5, **GREEDY, **LOGITS))
    same(answers[0], answers[1], 1e-9)


def test_a_pickled_cache_keeps_what_it_knows():
    case = Evicted(FAMILIES["llava"], SNAP)
    batch = case.family.inputs(ROWS)
    cache = generate(case.model(), batch).past_key_values
    state, twin = cache._vlmopt, pickle.loads(pickle.dumps(cache))._vlmopt
    assert state.heads.keys() == twin.heads.keys() == state.index.keys()
    assert all(torch.equal(state.heads[key], twin.heads[key]) for key in state.heads)


@cases
def test_crop_takes_what_was_generated(case):
    """Cropped behind the prompt a cache goes on as if the tokens had never been; inside it, it is refused."""
    batch = case.family.inputs(ROWS[:1])
    if case.family.name == "gemma3":
        pytest.skip("sliding layers cannot be cropped beyond their window")
    model, end = case.model(), batch.ids.shape[1]
    long = generate(model, batch, max_new_tokens=6)
    cache = long.past_key_values
    cache.crop(-3)
    assert cache.get_seq_length() == end + 2
    ids = long.sequences[:, : end + 3]
    turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **case.family.token_types(ids)}
    out = model.generate(**turn, past_key_values=cache, max_new_tokens=1, **GREEDY, **LOGITS)
    assert gap(out.logits[0], long.logits[3]) < TOLERANCE
    before = stored_lengths(cache)
    with pytest.raises(ValueError, match="evicted keys"):
        cache.crop(-(cache.get_seq_length() - end + 10))  # text is stored, the image before it is not
    assert stored_lengths(cache) == before


def test_a_restored_model_refuses_the_cache():
    case = Evicted(FAMILIES["llava"], SNAP)
    batch, model = case.family.inputs(ROWS[:1]), case.model()
    cache = generate(model, batch).past_key_values
    vlmopt.restore(model)
    with pytest.raises(ValueError, match="since been restored"):
        model(input_ids=torch.tensor([[5]]), past_key_values=cache)


@pytest.mark.parametrize("method", [kv.SnapKV(keep_ratio=1), kv.VLCache(keep_ratio=1), kv.RandomKV(keep_ratio=1)])
@pytest.mark.parametrize("name", NAMES)
def test_a_budget_of_all_keys_changes_no_bit(name, method):
    family = FAMILIES[name]
    batch = family.inputs(ROWS)
    expected = generate(family.build(), batch)
    model = vlmopt.optimize(copy.deepcopy(family.build()), vlmopt.Policy(kv=method))
    out = generate(model, batch)
    assert all(map(torch.equal, out.logits, expected.logits))
    assert type(out.past_key_values) is type(expected.past_key_values)
    assert not any("eviction" in part.__class__.__module__ for part in session(model).slot(Components))


def session(model):
    from vlmopt.runtime.session import session_of

    return session_of(model)


@pytest.mark.parametrize("name", NAMES)
def test_text_alone_changes_no_bit_and_says_why(name):
    family = FAMILIES[name]
    batch = family.inputs([[7], [4]])
    expected = generate(family.build(), batch)
    model = vlmopt.optimize(copy.deepcopy(family.build()), vlmopt.Policy(kv=SNAP))
    out = generate(model, batch)
    assert all(map(torch.equal, out.logits, expected.logits))
    assert type(out.past_key_values) is type(expected.past_key_values)
    assert {"what": "kv eviction", "why": "nothing competes: every key of the prompt is protected"} in (
        vlmopt.report(model).skipped
    )


@pytest.mark.parametrize("name", [name for name in ("qwen2_5_vl", "llava", "gemma4") if name in FAMILIES])
def test_restore_gives_the_model_back(name):
    family = FAMILIES[name]
    plain = family.build()
    batch, model = family.inputs(ROWS), copy.deepcopy(plain)
    before = {module: set(vars(part)) for module, part in model.named_modules()}
    vlmopt.optimize(model, vlmopt.Policy(kv=SNAP))
    generate(model, batch)
    vlmopt.restore(model)
    assert {module: set(vars(part)) for module, part in model.named_modules()} == before
    assert all(map(torch.equal, generate(model, batch).logits, generate(plain, batch).logits))


# ---- what is refused, and what is said


def test_assisted_decoding_is_refused():
    case = Evicted(FAMILIES["llava"], SNAP)
    with pytest.raises(ValueError, match="snap_kv: assisted decoding"):
        generate(case.model(), case.family.inputs(ROWS[:1]), prompt_lookup_num_tokens=2)


@pytest.mark.parametrize("rows", [ROWS[:1], [*ROWS, [9]]], ids=["one", "padded"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_static_caches_are_refused(name, rows):
    case = Evicted(FAMILIES[name], SNAP)
    model = case.model()
    static = StaticCache(model.config.get_text_config(), 200)
    for setting in ({"cache_implementation": "static"}, {"past_key_values": static}):
        with pytest.raises(ValueError, match="snap_kv: StaticCache cannot shrink"):
            generate(model, case.family.inputs(rows), **setting)


def test_without_a_cache_nothing_is_evicted():
    case = Evicted(FAMILIES["llava"], SNAP)
    batch, model = case.family.inputs(ROWS[:1]), case.model()
    out = generate(model, batch, use_cache=False)
    same(out, generate(case.family.build(), batch, use_cache=False))
    assert {"what": "kv eviction", "why": "the call has no cache"} in vlmopt.report(model).skipped


def test_a_bare_forward_keeps_all_keys():
    case = Evicted(FAMILIES["llava"], SNAP)
    batch, model = case.family.inputs(ROWS[:1]), case.model()
    cache = DynamicCache()
    with torch.no_grad():
        model(**batch(), past_key_values=cache)
    assert set(stored_lengths(cache)) == {batch.ids.shape[1]}
    assert any("only `generate`" in entry["why"] for entry in vlmopt.report(model).skipped)


def test_a_model_whose_layers_are_all_windows_is_refused():
    model = copy.deepcopy(FAMILIES["mistral3"].build())
    with pytest.raises(ValueError, match=r"snap_kv: no layer of Mistral3.*its cache is a window already"):
        vlmopt.optimize(model, vlmopt.Policy(kv=SNAP))
    assert session(model) is None


@pytest.mark.skipif("gemma4" not in FAMILIES, reason="family not in this release")
def test_layers_that_keep_their_keys_are_named():
    model = Evicted(FAMILIES["gemma4"], SNAP).model()
    generate(model, FAMILIES["gemma4"].inputs(ROWS[:1]))
    reasons = {entry["why"] for entry in vlmopt.report(model).skipped}
    assert "its cache is a window already" in reasons
    assert any("reads the keys of layer" in why for why in reasons)


# ---- what stays


@pytest.mark.parametrize("method", [SNAP, kv.VLCache(keep_ratio=0.1, recent=2), kv.RandomKV(keep_ratio=0.05, recent=2)])
@pytest.mark.parametrize("prune", [(), (Uniform(keep_ratio=0.5, positions="pospad"),), (FastV(keep_ratio=0.5),)])
def test_text_ends_and_markers_stay(method, prune):
    family = FAMILIES["qwen2_5_vl"]
    batch = family.inputs([[5, Image(0), 7], [3, Image(1), Image(2), 6]])
    model = vlmopt.optimize(copy.deepcopy(family.build()), vlmopt.Policy(prune=prune, kv=method))
    cache = generate(model, batch).past_key_values
    _, away = gone(cache, batch.ids.shape[1])
    text = batch.real & ~batch.visual
    markers = sum(sample["markers"] for sample in vlmopt.report(model).samples)
    for left in away.values():
        assert not bool((left & text[:, None]).any())
        assert not bool((left[..., -2:] & batch.real[:, None, -2:]).any())
        assert (~left & batch.visual[:, None]).sum((0, 2)).min() >= markers


@pytest.mark.parametrize("prune", [(), (Uniform(keep_ratio=0.5),)], ids=["whole", "cut"])
def test_a_sample_keeps_the_same_keys_alone_and_in_a_batch(prune):
    """Also where rows of the window are padding, or fillers behind a cut."""
    family = FAMILIES["qwen2_5_vl"]
    rows = [[5, Image(0), 7], [3, Image(1), Image(2), 12]]
    batch = family.inputs(rows)
    wide = kv.SnapKV(keep_ratio=0.3, recent=2, window=64, pooling="none")
    methods = (SNAP, wide, kv.VLCache(keep_ratio=0.3, recent=2), kv.RandomKV(keep_ratio=0.3, recent=2), KEYS)
    for method in methods:
        model = vlmopt.optimize(copy.deepcopy(family.build()), vlmopt.Policy(prune=prune, kv=method))
        _, together = gone(generate(model, batch).past_key_values, batch.ids.shape[1])
        pads = int((~batch.real[0]).sum())
        grids = batch.inputs["image_grid_thw"]
        patches = int(grids[0].prod())
        alone = {
            name: value[:1, pads:] for name, value in batch.inputs.items() if value.shape[:2] == batch.ids.shape
        } | {"pixel_values": batch.inputs["pixel_values"][:patches], "image_grid_thw": grids[:1]}
        _, single = gone(
            model.generate(**alone, max_new_tokens=5, **GREEDY, **LOGITS).past_key_values, batch.ids.shape[1] - pads
        )
        for layer in single:
            assert torch.equal(single[layer][0], together[layer][0, :, pads:])
