"""What selectors read: every signal equals what the unwrapped model itself computes there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, MASKABLE, Family
from tests.support.listen import ROWS, Listen, by_name, listen
from tests.support.mechanism import BATCHES, TOLERANCE, Case, forward, gap
from vlmopt.api import session_of
from vlmopt.pruning import (
    TEXT,
    Activations,
    AttentionRows,
    Debias,
    FastV,
    HiddenStates,
    LookAheadRows,
    Pixels,
    Projector,
    PyramidDrop,
    Random,
    TextEmbeds,
    VisionAttention,
    VisualEmbeds,
)

LAYER = 2


def own_embeds(family: Family, batch: Any) -> torch.Tensor:
    """[B, L, d] that the unwrapped model hands to its decoder."""
    model, seen = copy.deepcopy(family.build("sdpa")), []
    decoder = next(m for m in model.modules() if hasattr(m, "layers") and hasattr(m, "embed_tokens"))
    decoder.register_forward_pre_hook(lambda m, a, k: seen.append(k["inputs_embeds"]), with_kwargs=True)
    forward(model, batch)
    return seen[0]


@by_name(MASKABLE)
def test_embeddings_are_those_of_the_model(family):
    batch = family.inputs(ROWS)
    expected = own_embeds(family, batch)
    for row, tokens in enumerate(listen(family, batch, VisualEmbeds(), TextEmbeds(), HiddenStates())):
        places = batch.visual[row].nonzero()[:, 0]
        assert torch.equal(tokens.signals[VisualEmbeds()], expected[row, places])
        if family.name != "paligemma":  # older releases scale embeddings inside the decoder
            assert torch.equal(tokens.signals[HiddenStates()], expected[row, places])
        question = [p for p in batch.real[row].nonzero()[:, 0].tolist() if p > int(places[-1])]
        assert torch.equal(tokens.signals[TextEmbeds()], expected[row, question])


@by_name([FAMILIES[name] for name in ("qwen2_5_vl", "llava")])
def test_whole_embeddings_outlive_an_earlier_cut(family):
    batch = family.inputs(ROWS)
    expected, need = own_embeds(family, batch), VisualEmbeds(whole=True)
    for row, tokens in enumerate(listen(family, batch, need, layer=3, before=(Random(keep_ratio=0.3, layer=1),))):
        places = batch.visual[row].nonzero()[:, 0]
        assert len(tokens) < len(places)
        assert torch.equal(tokens.signals[need], expected[row, places])
        assert torch.equal(tokens.subset(torch.tensor([0])).signals[need], expected[row, places])


@pytest.mark.parametrize("prompts", ["one", "ragged", "right"])
@by_name(MASKABLE)
def test_look_ahead_is_the_row_of_the_layer_itself(family, prompts):
    case = Case(family, "mid", prompts=prompts)
    batch = case.batch
    with torch.no_grad():
        attention = family.build("eager")(**batch(), output_attentions=True).attentions[LAYER]
    heard = iter(listen(family, batch, LookAheadRows(LAYER), LookAheadRows(LAYER, rows=TEXT), layer=LAYER))
    for row in range(len(batch.ids)):
        places = batch.visual[row].nonzero()[:, 0]
        if not len(places):
            continue
        signals = next(heard).signals
        last = int(batch.real[row].nonzero()[-1])
        assert gap(signals[LookAheadRows(LAYER)][:, 0], attention[row, :, last][:, places]) < TOLERANCE
        question = [p for p in batch.real[row].nonzero()[:, 0].tolist() if p > int(places[-1])]
        assert gap(signals[LookAheadRows(LAYER, rows=TEXT)], attention[row][:, question][..., places]) < TOLERANCE


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@by_name([FAMILIES[name] for name in ("qwen2_5_vl", "llava", "gemma3")])
def test_look_ahead_behind_an_earlier_cut(family, attn):
    """It sees what the layer really sees then: the survivors, at their positions."""
    batch = family.inputs(BATCHES["ragged"][0][:2])
    first = FastV(keep_ratio=0.6, layer=LAYER)
    ahead = listen(family, batch, LookAheadRows(4), layer=4, attn=attn, before=(first,))
    really = listen(family, batch, AttentionRows(4), layer=5, attn=attn, before=(first,))
    for a, b in zip(ahead, really, strict=True):
        assert torch.equal(a.ordinal, b.ordinal)
        assert gap(a.signals[LookAheadRows(4)], b.signals[AttentionRows(4)]) < TOLERANCE


def test_look_ahead_changes_nothing_by_itself():
    """Hidden states, cache and logits are those of a cut that read nothing."""
    family = FAMILIES["qwen2_5_vl"]
    batch = family.inputs(ROWS)
    outs = []
    for signals in ((), (LookAheadRows(LAYER),)):
        ear = Listen(keep_ratio=0.9, layer=LAYER, signals=signals)
        with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), ear) as model:
            outs.append(
                model.generate(
                    **batch(), max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
                )
            )
    assert torch.equal(outs[0].sequences, outs[1].sequences)
    assert all(torch.equal(a, b) for a, b in zip(outs[0].logits, outs[1].logits, strict=True))
    keys = [[layer.keys for layer in out.past_key_values.layers] for out in outs]
    assert all(torch.equal(a, b) for a, b in zip(*keys, strict=True))


@pytest.mark.parametrize("method", [FastV(keep_ratio=0.5, layer=2), Debias(FastV(keep_ratio=0.5, layer=2))])
def test_a_probe_reads_its_row_alone_and_leaves_the_kernel_as_it_is(method, monkeypatch):
    """Under sdpa: one query row per image, and no layer falls back to the eager kernel."""
    from transformers.models.llama import modeling_llama

    from vlmopt.runtime.captures import read_rows

    shapes, kept = [], read_rows.masked_logits

    def spy(rows, *args, **kwargs):
        shapes.append(tuple(rows.shape))
        return kept(rows, *args, **kwargs)

    def eager(*args, **kwargs):
        raise AssertionError("the eager kernel ran")

    monkeypatch.setattr(read_rows, "masked_logits", spy)
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", eager)
    family = FAMILIES["llava"]
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), method) as model:
        model.generate(**family.inputs(ROWS)(), max_new_tokens=3, do_sample=False)
    assert shapes == [(2, 4, 1, 16)]  # [batch, heads, one row, d_h], once


def test_a_look_ahead_writes_nothing_down_in_the_step(monkeypatch):
    """How many keys a layer attends to is noted once, when the layer itself runs."""
    from vlmopt.runtime.captures.lookahead import LookAheadRowsCapture

    noted, kept = [], LookAheadRowsCapture.before_cut

    def spy(self, step, context, need, at, fitting):
        kept(self, step, context, need, at, fitting)
        noted.append(at.layer in step.key_length)

    monkeypatch.setattr(LookAheadRowsCapture, "before_cut", spy)
    family = FAMILIES["llava"]
    method = PyramidDrop(keep_ratio=0.25, layers=(1, 2))
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), method) as model:
        model.generate(**family.inputs(ROWS)(), max_new_tokens=2, do_sample=False)
    assert noted == [False, False]


@by_name([f for f in MASKABLE if f.name != "gemma4"])
def test_question_rows_of_the_layer_before(family):
    batch = family.inputs(ROWS)
    with torch.no_grad():
        attention = family.build("eager")(**batch(), output_attentions=True).attentions[LAYER - 1]
    need = AttentionRows(LAYER - 1, rows=TEXT)
    for row, tokens in enumerate(listen(family, batch, need, AttentionRows(LAYER - 1), layer=LAYER)):
        places = batch.visual[row].nonzero()[:, 0]
        question = [p for p in batch.real[row].nonzero()[:, 0].tolist() if p > int(places[-1])]
        assert gap(tokens.signals[need], attention[row][:, question][..., places]) < TOLERANCE
        assert torch.equal(tokens.signals[AttentionRows(LAYER - 1)], tokens.signals[need][:, -1:])


@by_name([f for f in MASKABLE if f.name != "gemma4"])
def test_activations_are_what_enters_the_down_projection(family):
    batch, seen = family.inputs(ROWS), []
    model = copy.deepcopy(family.build("sdpa"))
    decoder = next(m for m in model.modules() if hasattr(m, "layers") and hasattr(m, "embed_tokens"))
    decoder.layers[LAYER - 1].mlp.down_proj.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    forward(model, batch)
    needs = Activations(LAYER - 1), Activations(LAYER - 1, "text")
    for row, tokens in enumerate(listen(family, batch, *needs, layer=LAYER)):
        assert gap(tokens.signals[needs[0]], seen[0][row, batch.visual[row]]) < TOLERANCE
        assert gap(tokens.signals[needs[1]], seen[0][row, batch.real[row] & ~batch.visual[row]]) < TOLERANCE


def test_signals_that_cannot_be_had_are_refused_before_anything_changes():
    cases = [
        ("gemma3", Projector(), r"gemma3.*llava.*div_prune"),
        ("fast_vlm", VisionAttention(-2), "fast_vlm"),
        ("llava_next", Pixels(), "llava_next.*div_prune"),
        ("qwen2_5_vl", VisionAttention(7), "block 7"),
        ("llava", LookAheadRows(9), "layer 9"),
    ]
    for name, need, match in cases:
        if name not in FAMILIES:
            continue
        model = copy.deepcopy(FAMILIES[name].build())
        before = {n: id(m) for n, m in model.named_modules()}
        with pytest.raises(ValueError, match=match):
            vlmopt.optimize(model, Listen(keep_ratio=0.5, layer=0, signals=(need,)))
        assert session_of(model) is None
        assert before == {n: id(m) for n, m in model.named_modules()}
