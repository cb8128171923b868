"""Cuts before the LLM over a static cache: physical slots, logical positions, and one compiled graph per step."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from transformers import CompileConfig, GenerationConfig, StaticCache
from transformers.cache_utils import StaticLayer

import vlmopt
from tests.support.families import FAMILIES, GREEDY, MASKABLE, Image, Video
from tests.support.mechanism import (
    LOGITS,
    NEW_TOKENS,
    TOLERANCE,
    Case,
    DropByOrdinal,
    answer,
    gap,
    generate,
    stored_lengths,
)
from vlmopt import kv
from vlmopt.attention_fix import ImageBoost
from vlmopt.pruning import FirstPass, PixelRedundancy, Uniform
from vlmopt.runtime.cache import LogicalCache

pytestmark = pytest.mark.skipif(
    not hasattr(StaticLayer(8), "cumulative_length"), reason="on this release a static cache is not cut"
)
STATIC = {"cache_implementation": "static", "disable_compile": True}
NAMES = ["qwen2_5_vl", "llava", "gemma3"]
names = pytest.mark.parametrize("name", NAMES)


def compiled(**more):
    """Settings that let `generate` compile decoding on a CPU into one graph, or fail."""
    config = CompileConfig(fullgraph=True, backend="eager", **more)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def same(out, expected, tolerance=TOLERANCE):
    assert torch.equal(out.sequences, expected.sequences)
    assert gap(torch.stack(out.logits, 1), torch.stack(expected.logits, 1)) < tolerance


@functools.cache
def agrees(family, prompts):
    """Whether the unwrapped model answers the same over a static cache and a dynamic one (Gemma 4 up to 5.17 not)."""
    model, batch = family.build(), Case(family, "pre", "keep", prompts).batch
    static, dynamic = (torch.stack(generate(model, batch, **way).logits) for way in (STATIC, {}))
    return gap(static, dynamic) < TOLERANCE


CELLS = [
    pytest.param(family, positions, prompts, id=f"{family.name}-{positions}-{prompts}")
    for family in MASKABLE
    for positions in ("keep", "pospad")
    for prompts in ("one", "ragged", "unpadded")
    if family.name in NAMES or (positions == "keep" and prompts != "one")
]


@pytest.mark.parametrize(("family", "positions", "prompts"), CELLS)
def test_a_static_cache_equals_the_masked_model(family, positions, prompts):
    case = Case(family, "pre", positions, prompts)
    if not agrees(family, prompts):
        pytest.skip("on this release the model itself answers otherwise over a static cache")
    expected = answer(case)
    with case.optimized() as model:
        out = generate(model, case.batch, **STATIC)
        report = vlmopt.report(model)
    assert torch.equal(out.sequences, expected.sequences)
    assert gap(torch.stack(out.logits, 1), expected.logits) < TOLERANCE
    assert isinstance(out.past_key_values, LogicalCache)
    assert report.applied
    assert {line["what"] for line in report.skipped} <= {"compiled decoding"}
    whole = [i for i, layer in enumerate(out.past_key_values.layers) if not getattr(layer, "is_sliding", True)]
    assert [report.key_lengths[i] for i in whole] == [expected.lengths[i] for i in whole]


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@names
def test_of_every_kernel(name, attn):
    case = Case(FAMILIES[name], "pre", "keep", "ragged")
    with case.optimized(attn) as model:
        out = generate(model, case.batch, **STATIC)
    assert gap(torch.stack(out.logits, 1), answer(case).logits) < TOLERANCE


@pytest.mark.parametrize("prompts", ["one", "ragged"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_decoding_compiles_into_one_graph(name, prompts):
    torch._dynamo.reset()
    case = Case(FAMILIES[name], "pre", "keep", prompts)
    with case.optimized() as model:
        out = generate(model, case.batch, max_new_tokens=NEW_TOKENS, **compiled())
        report = vlmopt.report(model)
    assert torch.equal(out.sequences, answer(case).sequences)
    assert gap(torch.stack(out.logits, 1), answer(case).logits) < TOLERANCE
    assert report.new_tokens == NEW_TOKENS
    assert report.ms["decode"] is not None
    torch._dynamo.reset()


def test_prompts_of_many_lengths_share_a_graph():
    torch._dynamo.reset()
    family, settings, graphs = FAMILIES["llava"], compiled(), []
    with vlmopt.optimized(copy.deepcopy(family.build()), Uniform(keep_ratio=0.5)) as model:
        for words in (3, 6, 8):
            batch = family.inputs([[words, Image(0), 7]])
            same(generate(model, batch, **settings, max_cache_len=120), generate(model, batch))
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1] > 0
    torch._dynamo.reset()


def test_beside_what_acts_on_generated_tokens_nothing_is_compiled():
    """Hooks that have work would be traced, and remember things by identity."""
    family = FAMILIES["llava"]
    batch = family.inputs([[5, Image(0), 7]])
    policy = vlmopt.Policy(prune=[Uniform(keep_ratio=0.5)], attention=[ImageBoost(layers="0:")])
    with vlmopt.optimized(copy.deepcopy(family.build()), policy) as model:
        expected = generate(model, batch)
        same(generate(model, batch, **compiled()), expected)
        config = GenerationConfig(max_new_tokens=NEW_TOKENS, **GREEDY, **LOGITS, **compiled())
        same(model.generate(**batch(), generation_config=config), expected)
        assert not config.disable_compile
        (why,) = [line["why"] for line in vlmopt.report(model).skipped if line["what"] == "compiled decoding"]
        assert "acts on generated tokens" in why


def test_nothing_is_said_of_compiling_where_none_was_asked_for():
    family = FAMILIES["llava"]
    batch = family.inputs([[5, Image(0), 7]])
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, **GREEDY, **LOGITS, **STATIC)
    with vlmopt.optimized(copy.deepcopy(family.build()), ImageBoost(layers="0:")) as model:
        expected = generate(model, batch)
        same(generate(model, batch, **STATIC), expected)
        assert vlmopt.report(model).skipped == []
        same(model.generate(**batch(), generation_config=config), expected)
        assert vlmopt.report(model).skipped == []


def test_behind_a_cut_windows_are_not_compiled():
    case = Case(FAMILIES["gemma3"], "pre", "keep", "ragged")
    with case.optimized() as model:
        out = generate(model, case.batch, **compiled())
        assert any(line["what"] == "compiled decoding" for line in vlmopt.report(model).skipped)
    assert gap(torch.stack(out.logits, 1), answer(case).logits) < TOLERANCE


@names
@pytest.mark.parametrize("mode", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams(name, mode):
    case = Case(FAMILIES[name], "pre", "keep", "ragged")
    with case.optimized() as model:
        outs = [
            model.generate(**case.batch(), max_new_tokens=4, do_sample=False, **mode, **settings)
            for settings in ({}, STATIC)
        ]
    assert torch.equal(*outs)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
@pytest.mark.parametrize("compile_", [False, True])
def test_two_turns_and_a_copy(name, compile_):
    """A second question, and the same again from a copy of the cache behind the first answer."""
    torch._dynamo.reset()
    case = Case(FAMILIES[name], "pre")
    batch = case.batch
    settings = {"disable_compile": True}
    if compile_:
        settings = compiled()
        del settings["cache_implementation"]
    answers = []
    for static in (True, False):
        with case.optimized() as model:
            cache = StaticCache(model.config.get_text_config(), 300) if static else None
            cache = {"past_key_values": cache} if static else {}
            first = generate(model, batch, **cache, **(settings if static else {}))
            kept = first.past_key_values
            ids = torch.cat([first.sequences, torch.arange(40, 52)[None]], 1)
            turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **case.family.token_types(ids)}
            twin = copy.deepcopy(kept)
            for one in (twin, kept):
                out = model.generate(
                    **turn, past_key_values=one, max_new_tokens=4, **GREEDY, **LOGITS, **(settings if static else {})
                )
                answers.append(out)
    for other in answers[:3]:
        same(other, answers[3])
    torch._dynamo.reset()


@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in MASKABLE if f.videos])
def test_videos(family):
    batch = family.inputs([[4, Video(0), 5]])
    with vlmopt.optimized(copy.deepcopy(family.build()), Uniform(keep_ratio=0.5)) as model:
        same(generate(model, batch, **STATIC), generate(model, batch))


def test_a_loop_of_bare_forwards():
    """Masks that the decoder makes itself, from none and from one of padding."""
    case = Case(FAMILIES["llava"], "pre", "keep", "ragged")
    batch = case.batch
    for mask in (True, False):
        rows = batch if mask else Case(FAMILIES["llava"], "pre").batch
        logits = []
        for static in (True, False):
            with case.optimized() as model, torch.no_grad():
                cache = {"past_key_values": StaticCache(model.config.get_text_config(), 200)} if static else {}
                inputs = rows()
                if not mask:
                    del inputs["attention_mask"]
                out, said = model(**inputs, **cache, use_cache=True), []
                for step in range(3):
                    given = {}
                    if mask:
                        ones = torch.ones(len(rows.ids), step + 1, dtype=torch.long)
                        given["attention_mask"] = torch.cat([inputs["attention_mask"], ones], 1)
                    said.append(out.logits[:, -1])
                    ids = torch.full((len(rows.ids), 1), 7 + step)
                    out = model(input_ids=ids, past_key_values=out.past_key_values, **given)
                logits.append(torch.stack([*said, out.logits[:, -1]], 1))
        assert gap(*logits) < TOLERANCE


@pytest.mark.skipif(not hasattr(StaticLayer, "crop"), reason="on this release a static cache cannot be cropped")
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_cropped_behind_the_prompt(name):  # sliding layers cannot be cropped beyond their window
    case = Case(FAMILIES[name], "pre")
    with case.optimized() as model:
        out = generate(model, case.batch, **STATIC, max_new_tokens=6)
        cache, end = out.past_key_values, case.batch.ids.shape[1]
        cache.crop(-3)
        assert int(cache.get_seq_length()) == end + 2
        ids = out.sequences[:, : end + 3]
        turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **case.family.token_types(ids)}
        again = model.generate(
            **turn, past_key_values=cache, max_new_tokens=1, **GREEDY, **LOGITS, disable_compile=True
        )
        assert gap(again.logits[0], out.logits[3]) < TOLERANCE
        with pytest.raises(ValueError, match="dropped visual tokens"):
            cache.crop(-20)


def test_reset_it_serves_any_model():
    """Older releases of `generate` keep one static cache on the model, and empty it for the next call."""
    case = Case(FAMILIES["llava"], "pre")
    plain, batch = case.family.build(), case.batch
    cache = StaticCache(plain.config.get_text_config(), 200)
    with case.optimized() as model:
        generate(model, batch, past_key_values=cache, disable_compile=True)
    with pytest.raises(ValueError, match="since been restored"):
        plain(input_ids=torch.tensor([[5]]), past_key_values=cache)
    cache.reset()
    assert type(cache) is StaticCache
    same(generate(plain, batch, past_key_values=cache, disable_compile=True), generate(plain, batch), 1e-4)


def test_text_alone_and_settings_that_change_nothing():
    family = FAMILIES["llava"]
    plain = family.build()
    for batch, policy in (
        (family.inputs([[7], [4]]), Uniform(keep_ratio=0.5)),
        (family.inputs([[5, Image(0), 7]]), Uniform(keep_ratio=1.0)),
    ):
        expected = generate(plain, batch, **STATIC)
        with vlmopt.optimized(copy.deepcopy(plain), policy) as model:
            out = generate(model, batch, **STATIC)
        assert type(out.past_key_values) is StaticCache
        assert all(map(torch.equal, out.logits, expected.logits))


def test_a_method_before_the_tower():
    family = FAMILIES["qwen2_5_vl"]
    batch = family.inputs([[5, Image(0), 7], [3, Image(1), 6]])
    with vlmopt.optimized(copy.deepcopy(family.build()), PixelRedundancy()) as model:
        same(generate(model, batch, **STATIC), generate(model, batch))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl"])
def test_a_first_pass(name):
    """It runs beside the sequence, under masks of its own: those over a static cache may come by kinds of layers."""
    family = FAMILIES[name]
    for rows in ([[5, Image(0), 7]], [[5, Image(0), 7], [3, Image(1), 4, Image(0), 6]]):
        with vlmopt.optimized(copy.deepcopy(family.build()), FirstPass(keep_ratio=0.5)) as model:
            same(generate(model, family.inputs(rows), **STATIC), generate(model, family.inputs(rows)))


@pytest.mark.parametrize("layers", [(2,), (0, 2)])
def test_cuts_inside_run_unpruned_and_say_why(layers):
    family = FAMILIES["llava"]
    plain, batch = family.build(), family.inputs([[5, Image(0), 7]])
    prune = [DropByOrdinal(digits="147", keep_ratio=0.7, layer=layer) for layer in layers]
    with vlmopt.optimized(copy.deepcopy(plain), vlmopt.Policy(prune=prune)) as model:
        with pytest.warns(UserWarning, match=r"static cache: .* cut before layer 0, or use a dynamic cache"):
            out = generate(model, batch, **STATIC)
        assert any("made once for all layers" in line["why"] for line in vlmopt.report(model).skipped)
    same(out, generate(plain, batch, **STATIC), 1e-6)


def test_evictions_are_refused():
    family = FAMILIES["llava"]
    policy = vlmopt.Policy(prune=[Uniform(keep_ratio=0.5)], kv=kv.KeyDiff())
    model = vlmopt.optimize(copy.deepcopy(family.build()), policy)
    with pytest.raises(ValueError, match="StaticCache cannot shrink"):
        generate(model, family.inputs([[5, Image(0), 7]]), **STATIC)


def test_slots_hold_what_was_kept():
    case = Case(FAMILIES["llava"], "pre")
    with case.optimized() as model:
        static = generate(model, case.batch, **STATIC).past_key_values
        dynamic = generate(model, case.batch).past_key_values
    for own, other, count in zip(static.layers, dynamic.layers, stored_lengths(dynamic), strict=True):
        assert torch.allclose(own.keys[:, :, :count], other.keys, atol=1e-5)
        assert not own.keys[:, :, count:].any()
