"""What runs beside a call: the stream without images, guidance, the trace of heads, the watchdog, the tower."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import vlmopt
from tests.support.correction_oracle import text_only_heads
from tests.support.families import FAMILIES, GREEDY, LAYERS, Image
from tests.support.mechanism import TOLERANCE, gap, generate
from tests.support.reference import decoder_of
from tests.support.snapshot import differences, snapshot
from tests.support.tiny import END, START
from vlmopt.attention_fix import ImageBoost, InformedTokens, VisionHeads

STREAMED = ["llava", "qwen2_5_vl", "internvl", "gemma3"]


def heads_of(model, inputs):
    """Head outputs [H, D] per layer in the last row."""
    found, handles = {}, []
    for i, layer in enumerate(decoder_of(model).layers):
        heads = layer.self_attn.config.num_attention_heads
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(
            lambda m, args, i=i, h=heads: found.__setitem__(i, args[0][0, -1].view(h, -1).clone())
        ))  # fmt: skip
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return found


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits[0, -1].float()


def without_images(batch, family, tokens):
    ids = batch.ids[0]
    framing = torch.tensor([START, END] if family.startswith("qwen") or family == "gemma3" else [], dtype=torch.long)
    keep = batch.real[0] & ~batch.visual[0] & ~torch.isin(ids, framing)
    return torch.cat([ids[keep], tokens])[None]


@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_guidance_is_that_of_two_separate_models(name):
    """Greedy with guidance, first token included: gamma (s - u) + u of logits with and without the image."""
    family, gamma = FAMILIES[name], 1.4
    batch = family.inputs([[5, Image(0), 7]])
    plain, model = copy.deepcopy(family.build("sdpa")), copy.deepcopy(family.build("sdpa"))
    with vlmopt.optimized(model, ImageBoost(alpha=0.0, gamma=gamma)):
        out = model.generate(
            **batch(), max_new_tokens=5, do_sample=False, output_scores=True, return_dict_in_generate=True
        )
    tokens = out.sequences[0, batch.ids.shape[1] :]
    for step in range(len(tokens)):
        ids = torch.cat([batch.ids[0], tokens[:step]])[None]
        given = {**batch(), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        s = logits(plain, given).log_softmax(-1)
        u = logits(plain, {"input_ids": without_images(batch, name, tokens[:step])}).log_softmax(-1)
        expected = gamma * (s - u) + u
        kept = s >= s.max() + torch.tensor(0.1).log()
        assert torch.equal(out.scores[step][0] == -torch.inf, ~kept)
        assert gap(out.scores[step][0][kept], expected[kept]) < TOLERANCE
        assert int(expected.masked_fill(~kept, -torch.inf).argmax()) == int(tokens[step])


@pytest.mark.parametrize("setting", [{"num_beams": 2}, {"prompt_lookup_num_tokens": 2}])
def test_guidance_refuses_beams_and_assistants(setting):
    family = FAMILIES["llava"]
    batch = family.inputs([[5, Image(0), 7]])
    model = vlmopt.optimize(copy.deepcopy(family.build("sdpa")), ImageBoost(gamma=1.1))
    with pytest.raises(ValueError, match="num_beams=1"):
        model.generate(**batch(), max_new_tokens=2, do_sample=False, **setting)


def test_guidance_leaves_text_only_samples_alone():
    family = FAMILIES["llava"]
    batch = family.inputs([[5, Image(0), 7], [9]])
    plain, model = copy.deepcopy(family.build("sdpa")), copy.deepcopy(family.build("sdpa"))
    kwargs = {"max_new_tokens": 4, "output_scores": True, "return_dict_in_generate": True, **GREEDY}
    before = plain.generate(**batch(), **kwargs)
    with vlmopt.optimized(model, ImageBoost(gamma=1.4)):
        after = model.generate(**batch(), **kwargs)
    assert torch.equal(torch.stack(before.scores)[:, 1], torch.stack(after.scores)[:, 1])
    assert not torch.equal(torch.stack(before.scores)[:, 0], torch.stack(after.scores)[:, 0])


@pytest.mark.parametrize("name", STREAMED)
def test_the_trace_is_the_distance_of_two_separate_models(name):
    family = FAMILIES[name]
    batch = family.inputs([[5, Image(0), 7]])
    plain = copy.deepcopy(family.build("sdpa"))
    method = VisionHeads(strength=1.0, layers="0:", trace=True, trace_heads=2)
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), method) as model:
        out = model.generate(**batch(), max_new_tokens=3, **GREEDY)
        trace = vlmopt.report(model).token_divergence
    assert len(trace) == 1
    assert len(trace[0]) == 3
    tokens = out[0, batch.ids.shape[1] :]
    first = zip(heads_of(plain, batch()).values(), text_only_heads(plain, batch, 0).values(), strict=True)
    expected = sum(float((a - b).norm(dim=-1).topk(2).values.sum()) for a, b in first)
    assert trace[0][0] == pytest.approx(expected, rel=1e-4)
    ids = torch.cat([batch.ids[0], tokens[:2]])[None]
    given = {**batch(), **family.token_types(ids), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    short = without_images(batch, name, tokens[:2])
    text = heads_of(plain, {"input_ids": short, **family.token_types(short)})
    last = zip(heads_of(plain, given).values(), text.values(), strict=True)
    expected = sum(float((a - b).norm(dim=-1).topk(2).values.sum()) for a, b in last)
    assert trace[0][2] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", [name for name in (*STREAMED, "gemma4") if name in FAMILIES])
def test_without_a_cache_heads_and_trace_are_the_same(name):
    """The prompt comes again with every token; the heads stay chosen, and the trace is that of the newest token."""
    batch = FAMILIES[name].inputs([[5, Image(0), 7], [3, Image(1), 4, Image(2), 6]])
    with vlmopt.optimized(copy.deepcopy(FAMILIES[name].build("sdpa")), VisionHeads(layers="0:", trace=True)) as model:
        found = {}
        for use_cache in (True, False):
            out = generate(model, batch, max_new_tokens=3, use_cache=use_cache)
            report = vlmopt.report(model)
            found[use_cache] = torch.stack(out.logits), torch.tensor(report.token_divergence), report.corrections
    assert gap(found[True][0], found[False][0]) < TOLERANCE
    assert found[True][1].shape == (2, 3)
    assert torch.allclose(found[True][1], found[False][1], rtol=1e-4)
    assert found[True][2] == found[False][2]


def test_a_prompt_of_images_only_is_refused():
    family = FAMILIES["llava"]
    batch = family.inputs([[5, Image(0), 7]])
    only = batch.visual[0]
    ids = batch.ids[:, only]
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), VisionHeads()) as model:
        with pytest.raises(ValueError, match="images only"):
            model.generate(input_ids=ids, pixel_values=batch.inputs["pixel_values"], max_new_tokens=2)
        model.generate(**batch(), max_new_tokens=2, **GREEDY)  # and the model is as good as before


def test_the_tower_chooses_for_informed_tokens():
    """Local and summary tokens are those of the eager tower's own attention."""
    family = FAMILIES["llava"]
    batch = family.inputs([[5, Image(0), 7], [3, Image(1), 6]])
    model = copy.deepcopy(family.build("eager"))
    method = InformedTokens(layers="0:", local_block=0, summary_block=-1, local_ratio=0.5)
    marks = {}
    choose = InformedTokens.choose

    def spy(self, tower):
        marks.setdefault("tower", []).append(tower)
        return choose(self, tower)

    with pytest.MonkeyPatch.context() as patch, vlmopt.optimized(model, method):
        patch.setattr(InformedTokens, "choose", spy)
        model.generate(**batch(), max_new_tokens=2, **GREEDY)
    tower = copy.deepcopy(family.build("eager")).model.vision_tower
    with torch.no_grad():
        attention = tower(batch.inputs["pixel_values"], output_attentions=True).attentions
    for sample, seen in enumerate(marks["tower"]):
        for block, values in seen.items():
            expected = attention[block][sample].mean(0)[0, 1:]
            assert gap(values, expected) < 1e-5


def test_the_watchdog_marks_and_stops():
    """A model that repeats itself is marked; with "stop" the boost ends there, as the report counts."""
    family = FAMILIES["llava"]
    batch = family.inputs([[5, Image(0), 7]])
    loop = {"max_new_tokens": 60, "do_sample": False, "suppress_tokens": [i for i in range(400) if i not in (20, 21)]}
    for watchdog in ("mark", "stop"):
        method = ImageBoost(layers="0:", watchdog=watchdog)
        with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), method) as model:
            model.generate(**batch(), **loop)
            report = vlmopt.report(model)
            assert report.repeating == [0]
            assert "repeats itself" in str(report)
            layer = report.corrections[0]["layers"][0]
            assert (layer["generated_edited"] == 1) == (watchdog == "mark")
            model.generate(**batch(), max_new_tokens=6, **GREEDY)
            assert vlmopt.report(model).repeating == []


def test_the_watchdog_does_not_read_rejected_candidates():
    """Candidates are copies of the text, so with them every text would seem to repeat itself."""
    family = FAMILIES["llava"]
    batch = family.inputs([[5, Image(0), 7]])
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), ImageBoost(layers="0:", watchdog="mark")) as model:
        seen = []
        for setting in ({}, {"prompt_lookup_num_tokens": 8}):
            out = model.generate(**batch(), max_new_tokens=31, min_new_tokens=31, do_sample=False, **setting)
            seen.append((out.tolist(), vlmopt.report(model).repeating))
        assert seen[0] == seen[1]
        assert seen[0][1] == []  # 31 tokens are too few to say anything
        model.generate(**batch(), max_new_tokens=40, num_beams=2)
        assert "beams" in vlmopt.report(model).skipped[0]["why"]


@pytest.mark.parametrize("setting", [{"num_beams": 2}, {"prompt_lookup_num_tokens": 2}])
def test_the_trace_leaves_out_beams_and_assistants(setting):
    family = FAMILIES["llava"]
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), VisionHeads(trace=True)) as model:
        model.generate(**family.inputs([[5, Image(0), 7]])(), max_new_tokens=6, **setting)
        report = vlmopt.report(model)
    assert report.token_divergence is None
    assert "trace of vision_heads" in report.skipped[0]["what"]


def test_everything_is_taken_back():
    family = FAMILIES["qwen2_5_vl"]
    model = copy.deepcopy(family.build("sdpa"))
    batch = family.inputs([[5, Image(0), 7]])
    before, plain = snapshot(model), logits(model, batch())
    vlmopt.optimize(model, [VisionHeads(), ImageBoost(gamma=1.1, watchdog="stop")])
    model.generate(**batch(), max_new_tokens=3, do_sample=False)
    vlmopt.restore(model)
    assert differences(before, snapshot(model)) == []
    assert torch.equal(plain, logits(model, batch()))


def test_copies_of_a_cache_go_their_own_way():
    """A prompt's cache is copied for two continuations: streams and flags are copied with it, the model is not."""
    family = FAMILIES["llava"]
    batch = family.inputs([[5, Image(0), 7]])
    policy = [VisionHeads(layers="0:", trace=True), ImageBoost(gamma=1.2)]
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), policy) as model, torch.no_grad():
        first = model.generate(**batch(), max_new_tokens=3, return_dict_in_generate=True, **GREEDY)
        memos = {}, {}
        copies = [copy.deepcopy(first.past_key_values, memo) for memo in memos]
        assert not any(id(model) in memo for memo in memos)
        ends = []
        for cache, ids in zip(copies, ([7, 8, 9], [10, 11]), strict=True):
            turn = torch.cat([first.sequences, torch.tensor([ids])], 1)
            fresh = model.generate(turn, past_key_values=cache, max_new_tokens=3, output_scores=True,
                                   return_dict_in_generate=True, **GREEDY)  # fmt: skip
            ends.append(torch.stack(fresh.scores))
        lengths = [c._vlmopt_marks.stream.ran.cache.get_seq_length() for c in copies]
    assert lengths[0] == lengths[1] + 1
    assert not torch.equal(ends[0], ends[1])


def test_two_turns_select_heads_anew():
    family = FAMILIES["llava"]
    batch = family.inputs([[5, Image(0), 7]])
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), VisionHeads(layers="0:")) as model:
        first = model.generate(**batch(), max_new_tokens=4, return_dict_in_generate=True, **GREEDY)
        turn = torch.cat([first.sequences, torch.tensor([[7, 8, 9, 10]])], 1)
        model.generate(input_ids=turn, past_key_values=first.past_key_values, max_new_tokens=2, **GREEDY)
        gains = vlmopt.report(model).corrections[0]["layers"]
        stream = first.past_key_values._vlmopt_marks.stream
    ids = without_images(batch, "llava", turn[0, batch.ids.shape[1] :])
    plain = copy.deepcopy(family.build("sdpa"))
    text = heads_of(plain, {"input_ids": ids})
    assert len(gains) == LAYERS
    for layer in range(LAYERS):
        assert gap(stream.heads[layer][0], text[layer]) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_half_precision(name, dtype):
    family = FAMILIES[name]
    model = copy.deepcopy(family.build("sdpa")).to(dtype)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in family.inputs([[5, Image(0), 7]])().items()}
    neutral = [replace(VisionHeads(), strength=1.0), ImageBoost(alpha=0.0)]
    plain = model.generate(**inputs, max_new_tokens=3, output_logits=True, return_dict_in_generate=True, **GREEDY)
    with vlmopt.optimized(model, neutral):
        same = model.generate(**inputs, max_new_tokens=3, output_logits=True, return_dict_in_generate=True, **GREEDY)
    with vlmopt.optimized(model, [VisionHeads(), ImageBoost()]):
        out = model.generate(**inputs, max_new_tokens=3, output_logits=True, return_dict_in_generate=True, **GREEDY)
    assert torch.equal(torch.stack(plain.logits), torch.stack(same.logits))
    assert out.logits[0].isfinite().all()
    assert not torch.equal(out.logits[0], plain.logits[0])
