"""Quantised caches behind cuts and evictions: what leaves leaves first, what stays is packed as if it came alone."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import QuantizedCache

import vlmopt
from tests.support.evicted import Evicted
from tests.support.families import FAMILIES, GREEDY, Image
from tests.support.mechanism import LOGITS, gap
from vlmopt import kv

pytestmark = pytest.mark.usefixtures("quanto")

TOLERANCE = 1e-5
CONFIGS = {
    "quanto": {"backend": "quanto", "nbits": 4, "q_group_size": 16, "residual_length": 64},
    "fp8": {"backend": "fp8"},  # of torch alone
}
ROWS = [[5, Image(0), 7], [3, Image(1), 6]]
METHODS = {
    "none": kv.KeyDiff(keep_ratio=1.0),
    "key_diff": kv.KeyDiff(keep_ratio=0.3, recent=2),
    "snap_kv": kv.SnapKV(keep_ratio=0.3, recent=2, window=8),
    "vl_cache": kv.VLCache(keep_ratio=0.3, recent=2),  # budgets wait for all layers
    "one_set": kv.KeyDiff(keep_ratio=0.3, recent=2, per_head=False, layer_budgets="pyramid"),
}
SETTINGS = {**GREEDY, **LOGITS}
GRID = [
    pytest.param(name, method, cut, backend, id=f"{name}-{method}-{cut or 'whole'}-{backend}")
    for name in ("qwen2_5_vl", "llava")
    for method in METHODS
    for cut in ("", "pre", "progressive")
    for backend in CONFIGS
    if (method != "none" or cut) and (backend == "quanto" or (name == "llava" and cut != "pre"))
]


def packed(backend):
    return {"cache_implementation": "quantized", "cache_config": CONFIGS[backend]}


def empty(model, backend):
    return QuantizedCache(config=model.config.get_text_config(), **CONFIGS[backend])


def size(held):
    """Bytes of packed keys: numbers and a scale, or numbers, scales and shifts."""
    parts = held if isinstance(held, tuple) else (held._data._data, held._scale, held._shift)
    return sum(part.nbytes for part in parts)


@pytest.mark.parametrize(("name", "method", "cut", "backend"), GRID)
def test_it_decodes_over_what_was_kept_packed(name, method, cut, backend):
    """The dynamic cache of the same policy, its keys packed by hand, goes on to the same logits."""
    case = Evicted(FAMILIES[name], METHODS[method], cut)
    batch = case.family.inputs(ROWS)
    model = case.model()
    out = model.generate(**batch(), max_new_tokens=5, **SETTINGS, **packed(backend))
    report = vlmopt.report(model)
    dynamic = case.model()
    first = dynamic.generate(**batch(), max_new_tokens=1, **SETTINGS)
    assert gap(out.logits[0], first.logits[0]) < TOLERANCE  # a prompt attends to its own keys as they are
    cache, by_hand = first.past_key_values, empty(model, backend)
    for number, layer in enumerate(cache.layers):
        by_hand.update(layer.keys, layer.values, number)
    cache.layers = by_hand.layers
    prompt = sum(size(layer._quantized_keys) + size(layer._quantized_values) for layer in cache.layers)
    turn = {"input_ids": first.sequences, **case.family.token_types(first.sequences)}
    ones = torch.ones(len(first.sequences), 1, dtype=torch.long)
    turn["attention_mask"] = torch.cat([batch.inputs["attention_mask"], ones], 1)
    other = case.model()  # which knows nothing of the prompt, and evicts no more of it
    if hasattr(dynamic.model, "rope_deltas"):
        other.model.rope_deltas = dynamic.model.rope_deltas
    expected = other.generate(**turn, past_key_values=cache, max_new_tokens=4, **SETTINGS)
    assert torch.equal(out.sequences, expected.sequences)
    assert gap(torch.stack(out.logits[1:]), torch.stack(expected.logits)) < TOLERANCE * 10
    assert report.kv_cache_bytes == prompt
    assert all(entry["bytes_after"] < entry["bytes_before"] for entry in report.kv)


@pytest.mark.parametrize("backend", CONFIGS)
def test_two_turns_evict_from_what_is_packed(backend):
    case = Evicted(FAMILIES["llava"], METHODS["key_diff"])
    batch = case.family.inputs(ROWS[:1])
    model = case.model()
    cache = empty(model, backend)
    first = model.generate(**batch(), past_key_values=cache, max_new_tokens=3, **SETTINGS)
    ids = torch.cat([first.sequences, torch.arange(40, 140)[None]], 1)  # more than the residual holds
    turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    second = model.generate(**turn, past_key_values=cache, max_new_tokens=3, **SETTINGS)
    report = vlmopt.report(model)
    assert cache.get_seq_length() == second.sequences.shape[1] - 1
    image = int((batch.ids == model.config.image_token_id).sum())
    assert [entry["kept"] for entry in report.kv] == [[round(0.3 * image)]] * 6
    assert report.key_lengths == [ids.shape[1] - image + round(0.3 * image)] * 6


@pytest.mark.parametrize("backend", CONFIGS)
def test_a_budget_of_all_keys_changes_no_bit(backend):
    family = FAMILIES["llava"]
    batch = family.inputs(ROWS)
    expected = family.build().generate(**batch(), max_new_tokens=3, **SETTINGS, **packed(backend))
    model = vlmopt.optimize(copy.deepcopy(family.build()), vlmopt.Policy(kv=METHODS["none"]))
    out = model.generate(**batch(), max_new_tokens=3, **SETTINGS, **packed(backend))
    assert all(map(torch.equal, out.logits, expected.logits))
    assert type(out.past_key_values) is type(expected.past_key_values)


def test_a_copied_cache_goes_on_by_itself():
    """Of fp8: quanto's tensors cannot be copied."""
    case = Evicted(FAMILIES["llava"], METHODS["snap_kv"], "pre")
    batch, model = case.family.inputs(ROWS[:1]), case.model()
    cache = empty(model, "fp8")
    first = model.generate(**batch(), past_key_values=cache, max_new_tokens=3, **SETTINGS)
    ids = torch.cat([first.sequences, torch.arange(40, 46)[None]], 1)
    turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 4}
    answers = [model.generate(**turn, past_key_values=own, **SETTINGS) for own in (copy.deepcopy(cache), cache)]
    assert all(map(torch.equal, answers[0].logits, answers[1].logits))


@pytest.mark.parametrize("backend", CONFIGS)
def test_beams_follow_their_keys(backend):
    """What a beam would say next, told by its text alone: keys and what is known of them move together."""
    case = Evicted(FAMILIES["qwen2_5_vl"], METHODS["snap_kv"])
    batch, model = case.family.inputs(ROWS), case.model()
    settings = {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 3, **GREEDY}
    out = model.generate(**batch(), **settings, return_dict_in_generate=True, output_scores=True, **packed(backend))
    chosen = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
    state = out.past_key_values._vlmopt
    assert {len(index) for index in state.index.values()} == {6}
    for number, sequence in enumerate(out.sequences):
        said = sequence[batch.ids.shape[1] :]
        forced = {"max_new_tokens": 5, "prefix_allowed_tokens_fn": Forced(batch.ids.shape[1], number // 3, said)}
        alone = model.generate(**batch(), **forced, **SETTINGS, **packed(backend))
        own = torch.stack([step[number // 3].log_softmax(-1) for step in alone.logits])
        assert torch.allclose(own.gather(1, said[:, None])[:, 0], chosen[number], atol=1e-3)


class Forced:
    """Let one sample of a batch say a given text."""

    def __init__(self, start, sample, text):
        self.start, self.sample, self.text = start, sample, text.tolist()

    def __call__(self, sample, ids):
        return [self.text[len(ids) - self.start]] if sample == self.sample else [7]
