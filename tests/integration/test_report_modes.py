"""The report is of the call that was asked for, in every mode of generation."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import transformers

import vlmopt
from tests.support.families import FAMILIES, Image
from tests.support.mechanism import forward, generate
from vlmopt import attention_fix, kv, pruning

POLICY = [
    pruning.Uniform(keep_ratio=0.75),
    pruning.FastV(keep_ratio=0.5, layer=2),
    attention_fix.ImageBoost(layers="1:", gamma=1.0),
]
MODES = {
    "guidance_scale": {"guidance_scale": 1.5},
    "guidance_scale, no cache": {"guidance_scale": 1.5, "use_cache": False},
    "negative prompt": {"guidance_scale": 1.5, "negative_prompt_ids": torch.tensor([[5, 6, 7]])},
    "no cache": {"use_cache": False},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "assistant": {"assistant_model": "plain"},
    "pruned assistant": {"assistant_model": "pruned"},
    "sampling": {"do_sample": True},
    "chunks": {"prefill_chunk_size": 7},
    "stopped": {"max_new_tokens": 1},
}
# An unwrapped Qwen2.5-VL fails with a guidance scale.
CELLS = [("llava", mode) for mode in MODES] + [("qwen2_5_vl", m) for m in MODES if "guidance_scale" not in MODES[m]]


def optimized(family, policy=POLICY):
    return vlmopt.optimize(copy.deepcopy(family.build()), policy)


@pytest.mark.parametrize(("name", "mode"), CELLS)
def test_tokens_and_times_are_those_of_the_prompt(name, mode):
    family, settings = FAMILIES[name], dict(MODES[mode])
    batch = family.inputs([[5, Image(0), 7]])
    model = optimized(family)
    generate(model, batch)
    expected = vlmopt.report(model)
    if "assistant_model" in settings:
        pruned = settings["assistant_model"] == "pruned"
        settings["assistant_model"] = optimized(family, [pruning.Random(keep_ratio=0.3)] if pruned else [])
    out = generate(model, batch, **settings)
    report = vlmopt.report(model)
    if mode != "chunks":  # whose earlier chunks are not cut by methods that read the question
        assert report.samples == expected.samples
        assert report.key_lengths == expected.key_lengths
        assert report.applied == expected.applied
    if mode not in ("chunks", "assistant", "pruned assistant"):  # whose first candidates count as rows of the prompt
        got, wanted = ([c["layers"][0]["rows"] for c in r.corrections] for r in (report, expected))
        assert got == wanted
    assert report.samples[0]["prompt_tokens"] == batch.ids.shape[1]
    assert report.samples[0]["visual_tokens"] == int(batch.total[0])
    assert report.new_tokens == out.sequences.shape[1] - batch.ids.shape[1]
    ms = report.ms
    assert all(value is None or value > 0 for value in ms.values())
    assert ms["vision"] + ms["scoring"] + ms["prefill"] <= ms["ttft"]
    assert ms["ttft"] + (ms["decode"] or 0) <= ms["total"] + 1e-6
    assert (ms["decode"] is None) == (mode == "stopped")


@pytest.mark.parametrize("settings", [{}, {"prompt_lookup_num_tokens": 3}, {"use_cache": False}], ids=str)
def test_the_rate_counts_tokens_not_passes(settings):
    """A model that says one word over and over: nearly all candidates of prompt lookup are accepted."""
    family = FAMILIES["llava"]
    batch, model = family.inputs([[5, Image(0), 7]]), optimized(family)
    passes = []
    hook = model.model.language_model.register_forward_hook(lambda *given: passes.append(1))
    one_word = [i for i in range(400) if i != 20]
    out = generate(model, batch, max_new_tokens=20, min_new_tokens=20, suppress_tokens=one_word, **settings)
    hook.remove()
    assert out.sequences[0, -20:].tolist() == [20] * 20
    report = vlmopt.report(model)
    assert report.decode_tokens_per_s * report.ms["decode"] / 1e3 == pytest.approx(19)
    assert (len(passes) < 10) == ("prompt_lookup_num_tokens" in settings)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("told", [True, False])
def test_padding_in_a_static_cache_is_no_prompt(told, side):
    """Models then see a mask of four dimensions; `generate` was given the one of padding, or made it of the ids."""
    family = FAMILIES["llava"]
    batch, model = family.inputs([[5, Image(0), 7], [9]], padding_side=side), optimized(family, POLICY[-1:])
    generate(model, batch if told else batch.untold, cache_implementation="static", disable_compile=True)
    assert [s["prompt_tokens"] for s in vlmopt.report(model).samples] == batch.real.sum(1).tolist()
    assert torch.equal(vlmopt.report(model).rows(), batch.real)


@pytest.mark.parametrize("settings", [{"num_beams": 2}, {"num_beams": 2, "use_cache": False}], ids=str)
def test_beams_without_a_cache_are_the_sequence_asked_for(settings):
    family = FAMILIES["llava"]
    batch, model = family.inputs([[5, Image(0), 7], [3, Image(1), Image(2), 6]]), optimized(family, POLICY[:2])
    generate(model, batch, **settings)
    report = vlmopt.report(model)
    assert [s["prompt_tokens"] for s in report.samples] == batch.real.sum(1).tolist()
    assert [s["visual_tokens"] for s in report.samples] == batch.total.tolist()
    assert report.ms["prefill"] > 0


COPIES = {
    "beams": {"num_beams": 3},
    "beams, no cache": {"num_beams": 2, "use_cache": False},
    "several sequences": {"num_return_sequences": 2, "do_sample": True},
    "beams, several sequences": {"num_beams": 3, "num_return_sequences": 2},
}
COUNTED = {
    "cuts": [*POLICY[:2], attention_fix.VisionHeads(layers="0:")],
    "boost": attention_fix.ImageBoost(layers="1:", gamma=1.0),
    "eviction": kv.SnapKV(keep_ratio=0.4, recent=2),
    "tower": pruning.PixelRedundancy(keep_ratio=0.5),
    "diagnosis": attention_fix.SinkDiagnosis(),
}


@pytest.mark.parametrize("settings", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("policy", COUNTED.values(), ids=COUNTED)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_prompt_counts_once_however_many_copies_of_it_run(name, policy, settings):
    family = FAMILIES[name]
    batch = family.inputs([[5, Image(0), 7], [3, Image(1), 4, Image(0), 6]])
    try:
        model = optimized(family, policy)
    except ValueError:
        pytest.skip("this family cannot have it")
    generate(model, batch)
    alone = vlmopt.report(model)
    generate(model, batch, **settings)
    report = vlmopt.report(model)
    assert (report.samples, report.applied, report.tower) == (alone.samples, alone.applied, alone.tower)
    kept = [[[layer[n] for n in ("competing", "kept")] for layer in r.kv] for r in (report, alone)]
    assert kept[0] == (kept[1] if settings.get("use_cache", True) else [])
    for got, wanted in zip(report.corrections, alone.corrections, strict=True):
        of_prompts = [[[layer[n] for n in ("rows", "heads", "gain")] for layer in c["layers"]] for c in (got, wanted)]
        assert of_prompts[0] == of_prompts[1]
        assert [f["summary"] for f in got["found"]] == [f["summary"] for f in wanted["found"]]
    for sample in range(2):
        for got, wanted in zip(report.maps(sample), alone.maps(sample), strict=True):
            assert torch.equal(got.kept, wanted.kept)
            assert (got.item, got.kind, got.grid) == (wanted.item, wanted.kind, wanted.grid)
    with pytest.raises(ValueError, match="samples 0 to 1"):
        report.maps(2)


@pytest.mark.parametrize("settings", COPIES.values(), ids=COPIES)
def test_prompts_of_embeddings_count_once(settings):
    model = optimized(FAMILIES["llava"])
    ids = torch.tensor([[3, 5, 7], [4, 6, 8]])
    embeds = model.get_input_embeddings()(ids)
    model.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(ids), max_new_tokens=2, **settings)
    assert [s["prompt_tokens"] for s in vlmopt.report(model).samples] == [3, 3]


@pytest.mark.parametrize("use_cache", [True, False])
def test_guidance_of_both_kinds_at_once(use_cache):
    """The unconditional sequence does not touch what corrections know of the one asked for."""
    family = FAMILIES["llava"]
    batch = family.inputs([[5, Image(0), 7]])
    model = optimized(family, [attention_fix.ImageBoost(layers="1:", gamma=1.2)])
    alone = generate(model, batch)
    nearly = generate(model, batch, guidance_scale=1 + 1e-6, use_cache=use_cache)
    for got, wanted in zip(nearly.logits, alone.logits, strict=True):
        assert torch.allclose(got, wanted, atol=1e-3)
    assert torch.equal(nearly.sequences, alone.sequences)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("question", ["another question", "the same"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_logits_processor_may_run_the_model_on_another_image(name, question, use_cache):
    """As contrastive decoding with a disturbed image does: pruned too, and no part of what was asked for."""
    family = FAMILIES[name]
    batch, other = family.inputs([[5, Image(0), 7]]), family.inputs([[3, Image(1), 2, Image(0), 4]], seed=1)
    if question == "the same":
        other = dataclasses.replace(batch, inputs={**batch(), "pixel_values": batch.inputs["pixel_values"].flip(-1)})
    model = optimized(family)
    alone = generate(model, batch, use_cache=use_cache)
    expected = vlmopt.report(model)
    beside = [forward(model, other)]

    class Beside(transformers.LogitsProcessor):
        def __call__(self, ids, scores):
            beside.append(forward(model, other))
            return scores

    out = generate(model, batch, use_cache=use_cache, logits_processor=transformers.LogitsProcessorList([Beside()]))
    report = vlmopt.report(model)
    assert all(map(torch.equal, out.logits, alone.logits))
    assert (report.samples, report.key_lengths, report.applied) == (
        expected.samples,
        expected.key_lengths,
        expected.applied,
    )
    assert len(beside) == 5
    assert all(torch.equal(logits, beside[0]) for logits in beside)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_keys_without_a_cache_are_counted_where_nothing_is_dropped(name):
    family = FAMILIES[name]
    batch, model = family.inputs([[5, Image(0), 7]]), optimized(family, POLICY[-1:])
    generate(model, batch)
    expected = vlmopt.report(model).key_lengths
    generate(model, batch, use_cache=False)
    assert vlmopt.report(model).key_lengths == expected == [batch.ids.shape[1]] * len(expected)


def test_a_failed_call_has_no_report():
    family = FAMILIES["llava"]
    batch, model = family.inputs([[5, Image(0), 7]]), optimized(family)
    generate(model, batch)
    with pytest.raises(ValueError, match="nonsense"):
        generate(model, batch, nonsense=1)
    with pytest.raises(ValueError, match="did not finish"):
        vlmopt.report(model)


def test_a_turn_over_a_cache_says_so():
    family = FAMILIES["llava"]
    batch, model = family.inputs([[5, Image(0), 7]]), optimized(family, [pruning.Uniform(keep_ratio=0.5)])
    first = generate(model, batch)
    turn = torch.cat([first.sequences, torch.tensor([[7, 8, 9]])], 1)
    model.generate(turn, past_key_values=first.past_key_values, max_new_tokens=2)
    (line,) = vlmopt.report(model).skipped
    assert f"cache of {first.sequences.shape[1] - 1} tokens" in line["why"]
