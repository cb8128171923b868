"""What is said of a second stream: what it is refused beside, what it cost, and that nothing stays behind it."""

from __future__ import annotations

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, GREEDY
from vlmopt.decoding import VCD, BlankContrast, DeCo, LocalContrast, TextContrast, YesBias
from vlmopt.pruning import Uniform
from vlmopt.runtime.cache_kinds import cache_bytes

from .test_second_stream import ROWS, model_of


def test_a_stream_that_is_not_finite_is_reported():
    class Broken(BlankContrast):
        def change(self, frame, draw):
            return frame * torch.nan

    batch = FAMILIES["llava"].inputs(ROWS[:1])
    dense = model_of("llava").generate(**batch(), max_new_tokens=3, **GREEDY)
    with vlmopt.optimized(model_of("llava"), [Broken(cutoff=0)]) as model:
        with pytest.warns(UserWarning, match="not finite"):
            out = model.generate(**batch(), max_new_tokens=3, **GREEDY)
        assert any("not finite" in entry["why"] for entry in vlmopt.report(model).skipped)
    assert torch.equal(out, dense)


@pytest.mark.parametrize("method", [VCD(), TextContrast(), DeCo(), YesBias(ids=[3])], ids=lambda m: m.name)
@pytest.mark.parametrize("setting", [{"num_beams": 2}, {"prompt_lookup_num_tokens": 2}], ids=str)
def test_beams_and_assistants_are_refused(method, setting):
    batch = FAMILIES["llava"].inputs(ROWS[:1])
    model = vlmopt.optimize(model_of("llava"), [method])
    with pytest.raises(ValueError, match=rf"{method.name}: .*(beams|assisted decoding).*num_beams=1"):
        model.generate(**batch(), max_new_tokens=2, do_sample=False, **setting)


def test_what_cannot_be_is_refused_before_anything_is_changed():
    model = model_of("llava")
    with pytest.raises(ValueError, match="local_contrast needs mask="):
        vlmopt.optimize(model, [LocalContrast()])
    with pytest.raises(ValueError, match="names no early layer"):
        vlmopt.optimize(model, [DeCo(layers="-1")])
    tokens = model.config.get_text_config().vocab_size
    with pytest.raises(ValueError, match=f"yes_bias: .* below the {tokens} tokens"):
        vlmopt.optimize(model, [YesBias(ids=[tokens])])
    assert "forward" not in vars(model)


def test_embeddings_in_which_nobody_can_tell_an_image_are_reported():
    family = FAMILIES["llava"]
    batch, model = family.inputs(ROWS[:1]), model_of("llava")
    with torch.no_grad():
        features = model.model.get_image_features(pixel_values=batch()["pixel_values"])
    features = getattr(features, "pooler_output", features)
    embeds = model.get_input_embeddings()(batch.ids)
    embeds[batch.visual] = torch.cat(list(features)).to(embeds)
    given = {"inputs_embeds": embeds, "attention_mask": batch()["attention_mask"]}
    with vlmopt.optimized(model, [VCD()]):
        out = model.generate(**given, max_new_tokens=2, **GREEDY)
        report = vlmopt.report(model)
    assert out.shape[1] <= 2
    assert report.decoding[0]["passes"] == 0
    assert any("inputs_embeds" in entry["why"] for entry in report.skipped)


@pytest.mark.parametrize("layer", [0, 1])
def test_the_report_counts_rows_that_a_cut_before_the_model_left(layer):
    batch = FAMILIES["llava"].inputs(ROWS[:1])
    with vlmopt.optimized(model_of("llava"), [Uniform(keep_ratio=0.5, layer=layer), VCD()]) as model:
        model.generate(**batch(), max_new_tokens=2, min_new_tokens=2, **GREEDY)
        report = vlmopt.report(model)
    sample = report.samples[0]
    dropped = sample["visual_tokens"] - sample["visual_tokens_kept"]
    assert dropped > 0
    assert report.decoding[0]["rows"] == sample["prompt_tokens"] + 1 - (dropped if layer == 0 else 0)


def test_the_report_counts_the_second_stream():
    batch = FAMILIES["llava"].inputs(ROWS[:2])
    length = batch.ids.shape[1]
    with vlmopt.optimized(model_of("llava"), [VCD()]) as model:
        out = model.generate(**batch(), max_new_tokens=3, return_dict_in_generate=True, **GREEDY)
        report = vlmopt.report(model)
    rows = 2 * (length + 2)
    keys = cache_bytes(out.past_key_values)
    assert keys > 0
    assert report.decoding == [
        {"method": "vcd", "reads": "noisy image", "passes": 3, "rows": rows, "cache_bytes": keys}
    ]
    assert f"applied  vcd: a second stream (noisy image), 3 more passes over {rows} rows, " in str(report)
    with vlmopt.optimized(model_of("llava"), [VCD()]) as model, torch.no_grad():
        model(**batch())
        assert {entry["what"] for entry in vlmopt.report(model).skipped} >= {"vcd"}


def test_restore_leaves_nothing_behind():
    from tests.support.snapshot import differences, snapshot

    model = model_of("llava")
    before = snapshot(model)
    vlmopt.optimize(model, [VCD(), DeCo()])
    vlmopt.restore(model)
    assert not differences(before, snapshot(model))
