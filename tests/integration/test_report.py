"""The cost ledger: what is promised about its keys, and that its numbers are those the oracle counts."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, Image, Video
from tests.support.mechanism import NEW_TOKENS, Case, answer, forward, full_layers, generate
from vlmopt import pruning

KEYS = {
    "family",
    "model_type",
    "attn_implementation",
    "dtype",
    "device",
    "policy",
    "samples",
    "key_lengths",
    "kv_cache_bytes",
    "kv_bytes_prompt",
    "kv",
    "read",
    "ms",
    "new_tokens",
    "decode_tokens_per_s",
    "peak_memory_bytes",
    "applied",
    "skipped",
    "corrections",
    "prefill",
    "repeating",
    "token_divergence",
    "tower",
    "decoding",
}
SAMPLE = {"row", "prompt_tokens", "visual_tokens", "visual_tokens_kept", "visual_tokens_pre_llm", "extras", "markers"}
SAMPLE |= {"layer_average", "items", "stages"}
MS = {"vision", "scoring", "prefill", "decode", "ttft", "total"}
REQUIRED = [f for f in FAMILIES.values() if not f.extra]


@pytest.mark.parametrize("positions", ["keep", "pospad"])
@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in REQUIRED])
def test_numbers_are_those_of_the_oracle(family, positions):
    case = Case(family, "progressive", positions, "ragged")
    batch, expected = case.batch, answer(case)
    removal = case.removal(batch)
    with case.optimized() as model:
        out = generate(model, batch)
        report = vlmopt.report(model)
    data = report.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert set(data) == KEYS
    assert set(data["ms"]) == MS
    assert data["family"] == data["model_type"] == family.name
    assert data["new_tokens"] == NEW_TOKENS
    assert [data["key_lengths"][i] for i in full_layers(out.past_key_values)] == [
        expected.lengths[i] for i in full_layers(out.past_key_values)
    ]
    layers = [[~batch.visual] if removal.survivors[i] is None else [removal.kept(i)] for i in range(6)]
    for row, sample in enumerate(data["samples"]):
        assert set(sample) == SAMPLE
        marked = {c for b, c in removal.markers[-1] if b == row}
        kept = int((expected.kept & batch.visual)[row].sum()) - len(marked)
        assert (sample["row"], sample["prompt_tokens"]) == (row, int(batch.real[row].sum()))
        assert (sample["visual_tokens"], sample["visual_tokens_kept"]) == (int(batch.total[row]), kept)
        assert sample["markers"] == len(marked)
        seen = [int((kept_here & batch.visual)[row].sum()) for (kept_here,) in layers]
        assert sample["layer_average"] == pytest.approx(sum(seen) / 6)
        assert sum(item["before"] for item in sample["items"]) == int(batch.total[row])
        assert sum(item["after"] for item in sample["items"]) == kept
        assert [stage["layer"] for stage in sample["stages"]] == list(family.prune_layers)
        assert all(stage["method"] == "drop_by_ordinal" for stage in sample["stages"])
        assert sample["stages"][0]["before"] == int(batch.total[row])
        assert sample["stages"][-1]["after"] == kept
    assert [line["layer"] for line in data["applied"]] == list(family.prune_layers)
    assert {line["positions"] for line in data["applied"]} == {positions}
    text = str(report)
    assert "drop_by_ordinal" in text
    assert str(int(batch.total[0])) in text


@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in REQUIRED])
def test_maps_show_what_was_kept(family):
    case = Case(family, "progressive", "keep", "ragged")
    batch, expected = case.batch, answer(case)
    with case.optimized() as model:
        forward(model, batch)
        report = vlmopt.report(model)
    for row in range(3):
        maps = report.maps(row)
        assert [m.item for m in maps] == list(range(len(maps)))
        kept = torch.cat([m.kept for m in maps] or [torch.ones(0, dtype=torch.bool)])
        assert torch.equal(kept, expected.kept[row, batch.visual[row]])
        spans = batch.span[row, batch.visual[row]]
        assert [len(m.kept) for m in maps] == [int((spans == s).sum()) for s in spans.unique()]
        for m in maps:
            assert m.coords.shape == (len(m.kept), 3)
            if m.grid is not None:
                cells = m.coords[m.coords[:, 0] >= 0]
                assert len(cells) == m.grid[0] * m.grid[1] * m.grid[2]
                assert bool((cells < torch.tensor(m.grid)).all())
    with pytest.raises(ValueError, match="sample=7"):
        report.maps(7)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_grids_of_images_and_videos(name):
    family = FAMILIES[name]
    batch = family.inputs([[2, Video(1), 3, Image(1), 4], [5, Image(2), 3]])
    with vlmopt.optimized(copy.deepcopy(family.build()), [pruning.Uniform(keep_ratio=0.5)]) as model:
        forward(model, batch)
        report = vlmopt.report(model)
    items = [[(i["kind"], i["grid"]) for i in s["items"]] for s in report.to_dict()["samples"]]
    assert items == [[("video", [3, 2, 2]), ("image", [1, 3, 5])], [("image", [1, 2, 4])]]


def test_times_are_measured():
    case = Case(FAMILIES["qwen2_5_vl"], "mid")
    with vlmopt.optimized(case.model(), [pruning.FastV(keep_ratio=0.5, layer=2)]) as model:
        generate(model, case.batch)
        ms = vlmopt.report(model).ms
        assert all(value > 0 for value in ms.values())
        assert ms["vision"] + ms["scoring"] + ms["prefill"] <= ms["ttft"]
        assert ms["ttft"] + ms["decode"] <= ms["total"] + 1e-6
        assert vlmopt.report(model).decode_tokens_per_s > 0
        forward(model, case.batch)
        after = vlmopt.report(model)
        assert (after.ms["decode"], after.decode_tokens_per_s, after.new_tokens) == (None, None, 0)


def test_an_empty_policy_only_keeps_the_ledger():
    case = Case(FAMILIES["llava"], "pre", prompts="ragged")
    with vlmopt.optimized(case.model(), vlmopt.Policy()) as model:
        out = generate(model, case.batch)
        report = vlmopt.report(model)
    assert report.applied == []
    assert [s["visual_tokens_kept"] for s in report.samples] == case.batch.total.tolist()
    assert report.key_lengths == [case.batch.ids.shape[1]] * 6
    tensors = [t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)]
    bytes_held = sum(t.numel() * t.element_size() for t in tensors)
    assert 0 < report.kv_cache_bytes < bytes_held  # counted after the prompt, before the answer


def test_nothing_is_skipped_silently():
    case = Case(FAMILIES["llava"], "pre")
    methods = [pruning.Random(keep_ratio=1.0), pruning.Uniform(keep_tokens=500, layer=2)]
    with vlmopt.optimized(case.model(), methods) as model:
        generate(model, case.batch)
        why = {line["what"]: line["why"] for line in vlmopt.report(model).skipped}
        assert any("random" in what and "keep_ratio" in reason for what, reason in why.items())
        assert any("uniform" in what and "500" in reason for what, reason in why.items())
        generate(model, case.family.inputs([[6]]))
        assert any("no visual tokens" in line["why"] for line in vlmopt.report(model).skipped)


def test_reports_that_do_not_exist_are_refused():
    model = copy.deepcopy(FAMILIES["llava"].build())
    with pytest.raises(ValueError, match="not optimized"):
        vlmopt.report(model)
    with vlmopt.optimized(model, vlmopt.Policy()), pytest.raises(ValueError, match="nothing to report"):
        vlmopt.report(model)
