"""Everything `generate` can do, against the masked reference: the logical cache needs no code for any of it."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import vlmopt
from tests.support.families import FAMILIES, GREEDY, Batch, Image
from tests.support.mechanism import (
    IN_CHUNKS,
    LOGITS,
    TOLERANCE,
    Case,
    full_layers,
    gap,
    generate,
    pattern,
    stored_lengths,
)
from tests.support.reference import Removal, Stage
from tests.support.tiny import SPECIAL, V5
from vlmopt.attention_fix import AttentionFusion
from vlmopt.pruning import DivPrune, FastV

NAMES = ["qwen2_5_vl", "qwen3_vl", "llava", "smolvlm", "gemma3"]
WAYS = [("pre", "keep"), ("mid", "keep"), ("progressive", "keep"), ("progressive", "pospad"), ("progressive", "repack")]
CASES = [
    pytest.param(Case(FAMILIES[name], schedule, positions), id=f"{name}-{schedule}-{positions}")
    for name in NAMES
    for schedule, positions in WAYS
    if positions in FAMILIES[name].positions and (positions == "keep" or name != "smolvlm")
]
cases = pytest.mark.parametrize("case", CASES)
ROWS = [[5, Image(0), 7], [3, Image(1), 6]]
MODES: dict[str, dict[str, Any]] = {
    "beam": {"num_beams": 3, "do_sample": False},
    "beam_two_returned": {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
    "sample_three": {"do_sample": True, "num_return_sequences": 3, "top_k": 0, "temperature": 1.0},
}


@pytest.mark.parametrize("mode", list(MODES))
@cases
def test_beams_and_samples(case, mode):
    batch, settings = case.family.inputs(ROWS), {**MODES[mode], "max_new_tokens": 5, "suppress_tokens": SPECIAL}
    torch.manual_seed(7)
    expected = case.reference(batch).generate(batch(), **settings)
    with case.optimized() as model:
        torch.manual_seed(7)
        assert torch.equal(model.generate(**batch(), **settings), expected)


@cases
def test_prompt_lookup(case):
    batch = case.family.inputs(ROWS[:1])
    settings = {"prompt_lookup_num_tokens": 2, "max_new_tokens": 8, **GREEDY}
    expected = case.reference(batch).generate(batch(), **settings)
    with case.optimized() as model:
        assert torch.equal(model.generate(**batch(), **settings), expected)


def test_prompt_lookup_may_propose_image_ids():
    """A candidate that copies an image id brings no pixels and is only a token."""
    case = Case(FAMILIES["llava"], "pre")
    batch = case.family.inputs([[5, Image(0), 7]])
    first = int(batch.visual[0].nonzero()[0])
    batch.ids[0, -2:] = batch.ids[0, first - 2 : first]  # the prompt ends like the text before its image
    settings = {"prompt_lookup_num_tokens": 3, "max_new_tokens": 6, **GREEDY}
    expected = case.reference(batch).generate(batch(), **settings)
    with case.optimized() as model:
        assert torch.equal(model.generate(**batch(), **settings), expected)


def turn(ids: Tensor, more: dict[str, Tensor] | None = None, case: Case | None = None) -> dict[str, Tensor]:
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **(more or {})}
    return {**inputs, **case.family.token_types(ids)} if case is not None else inputs


@cases
def test_second_turn_with_text(case):
    batch, settings = case.family.inputs(ROWS[:1]), {"max_new_tokens": 4, **GREEDY}
    cache, reference_cache, reference = DynamicCache(config=text_config(case)), DynamicCache(), case.reference(batch)
    with case.optimized() as model:
        said = model.generate(**batch(), past_key_values=cache, **settings)
        assert torch.equal(said, reference.generate(batch(), past_key_values=reference_cache, **settings))
        ids = torch.cat([said, torch.arange(40, 46)[None]], 1)
        out = model.generate(**turn(ids), past_key_values=cache, **settings, **LOGITS)
        expected = reference.generate(turn(ids), past_key_values=reference_cache, **settings, **LOGITS)
        assert same(out, expected)
        assert cache.get_seq_length() == out.sequences.shape[1] - 1
        prompt = case.removal(batch).lengths
        later = out.sequences.shape[1] - 1 - batch.ids.shape[1]
        assert stored_lengths(cache) == [prompt[i] + later for i in full_layers(cache)]


@pytest.mark.skipif(not V5, reason="transformers 4 does not forward a second turn's pixels")
@pytest.mark.parametrize("case", [p for p in CASES if p.values[0].family.rope == "1d"])
def test_second_turn_with_an_image(case):
    first, second = case.family.inputs(ROWS[:1]), case.family.inputs([[4, Image(0), 5]], seed=5)
    settings = {"max_new_tokens": 4, **GREEDY}
    cache, reference_cache, reference = DynamicCache(config=text_config(case)), DynamicCache(), case.reference(first)
    with case.optimized() as model:
        said = model.generate(**first(), past_key_values=cache, **settings)
        assert torch.equal(said, reference.generate(first(), past_key_values=reference_cache, **settings))
        ids = torch.cat([said, second.ids], 1)
        pixels = {k: v for k, v in second().items() if k.startswith("pixel") or k == "image_sizes"}
        inputs = turn(ids, pixels, case)
        reference.remove(two_turns(case, first, second, said.shape[1]))
        expected = reference.generate(inputs, past_key_values=reference_cache, **settings, **LOGITS)
        out = model.generate(**inputs, past_key_values=cache, **settings, **LOGITS)
    assert same(out, expected)


def two_turns(case: Case, first: Batch, second: Batch, said: int) -> Removal:
    """Both images lose tokens by their own ordinals; the second turn starts at column `said`."""
    width = said + second.ids.shape[1]
    span = torch.full((1, width), -1)
    span[:, : first.span.shape[1]] = first.span
    span[:, said:] = torch.where(second.visual, second.span + 100, -1)
    stages = []
    for a, b in zip(case.removal(first).stages.values(), case.removal(second).stages.values(), strict=True):
        drop = torch.zeros(1, width, dtype=torch.bool)
        drop[:, : a.drop.shape[1]], drop[:, said:] = a.drop, b.drop
        stages.append(Stage(a.layer, drop, a.positions))
    return Removal(torch.ones(1, width, dtype=torch.bool), span, stages, 6)


@cases
def test_two_continuations_of_one_prefix(case):
    batch, reference = case.family.inputs(ROWS[:1]), case.reference(case.family.inputs(ROWS[:1]))
    settings = {"max_new_tokens": 4, **GREEDY}
    cache, reference_cache = DynamicCache(config=text_config(case)), DynamicCache()
    with case.optimized() as model, torch.no_grad():
        model(**batch(), past_key_values=cache, use_cache=True)
        reference.forward({**batch(), "past_key_values": reference_cache})
        for words in ([50, 51, 52], [60, 61, 62, 63]):
            ids = torch.cat([batch.ids, torch.tensor([words])], 1)
            out = model.generate(**turn(ids), past_key_values=copy.deepcopy(cache), **settings, **LOGITS)
            other = copy.deepcopy(reference_cache)
            assert same(out, reference.generate(turn(ids), past_key_values=other, **settings, **LOGITS))


@IN_CHUNKS
@pytest.mark.parametrize("name", NAMES)
def test_chunked_prefill_cuts_each_chunk_by_itself(name):
    case = Case(FAMILIES[name], "progressive")
    batch = case.family.inputs([[3, Image(1), 4, Image(2), 6]])
    drops = []
    for _, digits in case.drops:
        chunks = [(c.long().cumsum(1) - 1, c) for c in batch.visual.split(16, 1)]
        drops.append(torch.cat([c & pattern(o, c.sum(1)[:, None], digits) for o, c in chunks], 1))
    stages = [Stage(k, drop) for (k, _), drop in zip(case.drops, drops, strict=True)]
    reference = case.reference(batch).remove(Removal(batch.real, batch.span, stages, 6))
    settings = {"max_new_tokens": 4, "prefill_chunk_size": 16, **GREEDY, **LOGITS}
    with case.optimized() as model:
        out = model.generate(**batch(), **settings)
    assert same(out, reference.generate(batch(), **settings))


@pytest.mark.parametrize("name", NAMES)
def test_static_cache_is_bypassed_loudly(name):
    case = Case(FAMILIES[name], "progressive", prompts="ragged")
    batch, plain = case.batch, case.family.build("sdpa")
    with case.optimized() as model:
        with pytest.warns(UserWarning, match="static cache"):
            out = generate(model, batch, cache_implementation="static", disable_compile=True)
        assert any("static" in line["why"] for line in vlmopt.report(model).skipped)
    expected = generate(plain, batch, cache_implementation="static", disable_compile=True)
    assert same(out, expected)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_beside_a_bypassed_cut_corrections_edit_the_same_rows(name):
    """A cut that a static cache rules out leaves the rows of text what they are, behind it too."""
    case, outs = Case(FAMILIES[name], "progressive", prompts="ragged"), []
    for prune in ((), case.policy.prune):
        policy = vlmopt.Policy(prune=prune, attention=[AttentionFusion(layers="0:")])
        with vlmopt.optimized(case.model(), policy) as model, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "static cache")
            outs.append(generate(model, case.batch, cache_implementation="static", disable_compile=True))
            assert len(vlmopt.report(model).corrections[0]["layers"]) == 6
    assert same(*outs)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_inputs_embeds_alone_run_unpruned(name):
    case = Case(FAMILIES[name], "pre")
    batch = case.batch
    embeds = case.family.build("sdpa").get_input_embeddings()(batch.ids).detach()
    mask = batch.inputs["attention_mask"]
    settings = {"inputs_embeds": embeds, "attention_mask": mask, "max_new_tokens": 4, **GREEDY}
    expected = case.family.build("sdpa").generate(**settings)
    with case.optimized() as model:
        assert torch.equal(model.generate(**settings), expected)
        assert "inputs_embeds" in str(vlmopt.report(model).skipped)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_inputs_embeds_with_pixels_are_pruned_as_ids_are(name, layer):
    """Models tell places of images by the placeholder's embedding, and so do we."""
    family = FAMILIES[name]
    batch, model = family.inputs([[5, Image(0), 7], [3, Image(0), 6]]), copy.deepcopy(family.build("sdpa"))
    given = batch()
    embeds = model.get_input_embeddings()(given.pop("input_ids")).detach()
    with vlmopt.optimized(model, FastV(keep_ratio=0.5, layer=2) if layer else DivPrune(keep_ratio=0.5)):
        expected = generate(model, batch)
        kept = [m.kept for row in range(2) for m in vlmopt.report(model).maps(row)]
        out = model.generate(inputs_embeds=embeds, **given, max_new_tokens=4, **GREEDY)
        report = vlmopt.report(model)
    assert report.skipped == []
    assert all(map(torch.equal, kept, [m.kept for row in range(2) for m in report.maps(row)]))
    assert torch.equal(out, expected.sequences[:, -4:])


def test_continuous_batching_is_refused():
    """It takes ids alone and keeps keys in pages: a policy would do nothing, or misread them."""
    model = vlmopt.optimize(copy.deepcopy(FAMILIES["llava"].build("sdpa")), FastV(keep_ratio=0.5, layer=2))
    with pytest.raises(ValueError, match=r"generate_batch.*vlmopt\.restore"):
        model.generate_batch([[1, 5, 6]], max_new_tokens=2)
    assert "init_continuous_batching" not in vars(vlmopt.restore(model))


def test_a_cache_outlives_restore_only_to_be_refused():
    case = Case(FAMILIES["llava"], "pre")
    batch, cache = case.batch, DynamicCache()
    model = vlmopt.optimize(case.model(), case.policy)
    said = model.generate(**batch(), past_key_values=cache, max_new_tokens=3, **GREEDY)
    vlmopt.restore(model)
    with pytest.raises(ValueError, match="restored"):
        model.generate(**turn(torch.cat([said, said[:, -3:]], 1)), past_key_values=cache, max_new_tokens=3, **GREEDY)


def text_config(case: Case) -> Any:
    return case.family.build("sdpa").config.get_text_config()


def same(out: Any, expected: Any) -> bool:
    assert torch.equal(out.sequences, expected.sequences)
    return gap(torch.stack(out.logits, 1), torch.stack(expected.logits, 1)) < TOLERANCE
