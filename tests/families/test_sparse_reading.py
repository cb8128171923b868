"""Layers that read what an earlier one chose equal the full cache with a mask per head: families, cuts, batches."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, Gemma2Config

import vlmopt
from tests.families.test_flash_contract import with_flash
from tests.support import tiny
from tests.support.evicted import EvictedReference, built
from tests.support.families import FAMILIES, GREEDY, HYBRID, MASKABLE, Image, Video
from tests.support.mechanism import LOGITS, Case, gap
from tests.support.reference import NEVER
from vlmopt import kv
from vlmopt.attention_fix import ImageBoost
from vlmopt.policy import Policy
from vlmopt.reading import SparseReading

TOLERANCE = 1e-5
METHOD = SparseReading(keep_ratio=0.2, least=4, full="0:2,3", min_keys=1)
ROWS = {
    "one": [[5, Image(0), 7]],
    "ragged": [[5, Image(0), 7], [3, Image(1), 6], [9]],
    "two_images": [[5, Image(0), 2, Image(1), 7]],
}
CUTS = ["", "pre", "mid", "progressive"]
SETTINGS = {"max_new_tokens": 5, **GREEDY, **LOGITS}


class SparselyRead(EvictedReference):
    """While decoding, layers see what the last layer that saw all keys of their stage attended to most."""

    def __init__(self, model, method, length, cuts):
        super().__init__(model)
        self.method, self.length = method, length
        self.full = method.full_layers(len(self.decoder.layers))
        self.cuts, self.last = cuts, {}
        kinds = getattr(self.decoder.config, "layer_types", None) or []
        self.windows = {i for i, kind in enumerate(kinds) if "sliding" in kind}

    def logits(self, layer, scores):
        if self.past < self.length or layer in self.windows:
            return scores
        stored, owner = scores.shape[-1], self.source[layer]
        if self.removal is not None:
            stored += self.removal.lengths[owner] - self.length
        stage = sum(cut <= owner for cut in self.cuts)
        hidden = self.last.get(stage)
        if layer not in self.full and hidden is not None and hidden.shape[-1] == scores.shape[-1]:
            return scores + NEVER * hidden
        heads = next(m.num_key_value_groups for m in self.decoder.layers[layer].children() if hasattr(m, "layer_idx"))
        most = scores.softmax(-1).unflatten(1, (-1, heads)).amax((2, 3))
        most[..., -1] = 2
        count = min(stored, max(self.method.least, math.ceil(stored * self.method.keep_ratio)))
        away = torch.ones_like(most).scatter_(-1, most.topk(count).indices, 0)
        self.last[stage] = away.repeat_interleave(heads, 1)[:, :, None]
        return scores


def check(family, batch, cut="", method=METHOD, attn="sdpa", **settings):
    case = Case(family, cut or "mid")
    prune = case.policy.prune if cut else ()
    model = vlmopt.optimize(built(family, attn), Policy(prune=prune, read=method))
    out = model.generate(**batch(), **SETTINGS, **settings)
    report = vlmopt.report(model)
    cuts = [layer for layer, _ in case.drops] if cut else []
    oracle = SparselyRead(built(family, "eager"), method, batch.ids.shape[1], cuts)
    other = dict(settings)
    if family.hybrid:  # recurrent layers need a cache that knows of them
        other["past_key_values"] = DynamicCache(config=family.build().config.get_text_config())
    expected = oracle.remove(case.removal(batch) if cut else None).generate(batch(), **SETTINGS, **other)
    assert torch.equal(out.sequences, expected.sequences)
    logits = torch.stack(expected.logits, 1)
    assert gap(torch.stack(out.logits, 1), logits) < TOLERANCE * float(logits.abs().max())
    dense = built(family, "sdpa").generate(**batch(), **SETTINGS, **settings)
    if torch.equal(dense.sequences, out.sequences) and not cut:  # the test can fail
        assert gap(torch.stack(out.logits[1:], 1), torch.stack(dense.logits[1:], 1)) > 100 * TOLERANCE
    return report


CELLS = [
    pytest.param(family, cut, rows, id=f"{family.name}-{cut or 'whole'}-{rows}")
    for family in MASKABLE
    for cut in CUTS
    for rows in ROWS
    if family.name in ("qwen2_5_vl", "llava") or (family.name != "mistral3" and rows == "ragged" and cut in ("", "mid"))
]


@pytest.mark.parametrize(("family", "cut", "rows"), CELLS)
def test_reading_equals_a_mask_per_head(family, cut, rows):
    report = check(family, family.inputs(ROWS[rows]), cut)
    assert report.read
    assert any(entry["read"] < entry["keys"] for entry in report.read) or family.name.startswith("gemma")


@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in HYBRID])
def test_layers_with_attention_read_between_recurrent_ones(family):
    check(family, family.inputs(ROWS["ragged"]))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_eager_attention(name):
    check(FAMILIES[name], FAMILIES[name].inputs(ROWS["ragged"]), "mid", attn="eager")


@pytest.mark.parametrize("rows", ["one", "ragged"])
def test_a_kernel_that_takes_masks_of_padding(rows):
    """As FlashAttention does."""
    family = FAMILIES["llava"]
    batch = family.inputs(ROWS[rows])
    model = vlmopt.optimize(built(family, "sdpa"), Policy(read=METHOD))
    flash = vlmopt.optimize(with_flash(family.build()), Policy(read=METHOD))
    outs = [one.generate(**batch(), **SETTINGS) for one in (model, flash)]
    assert gap(torch.stack(outs[0].logits), torch.stack(outs[1].logits)) < 1e-4


def test_videos():
    check(FAMILIES["qwen2_5_vl"], FAMILIES["qwen2_5_vl"].inputs([[4, Video(0), 5]]))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_beams_choose_for_themselves(name):
    family = FAMILIES[name]
    batch = family.inputs(ROWS["ragged"][:2])
    settings = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    model = vlmopt.optimize(built(family, "sdpa"), Policy(read=METHOD))
    oracle = SparselyRead(built(family, "eager"), METHOD, batch.ids.shape[1], [])
    assert torch.equal(model.generate(**batch(), **settings), oracle.generate(batch(), **settings))


def test_static_caches_and_copies_read_alike():
    family = FAMILIES["llava"]
    batch = family.inputs(ROWS["one"])
    model = vlmopt.optimize(built(family, "sdpa"), Policy(read=METHOD))
    expected = model.generate(**batch(), **SETTINGS)
    static = model.generate(**batch(), **SETTINGS, cache_implementation="static", disable_compile=True)
    assert torch.equal(static.sequences, expected.sequences)
    assert gap(torch.stack(static.logits), torch.stack(expected.logits)) < 1e-4
    twin = copy.deepcopy(model).generate(**batch(), **SETTINGS)
    assert gap(torch.stack(twin.logits), torch.stack(expected.logits)) < 1e-6


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava", "gemma3"])
def test_short_contexts_and_a_ratio_of_one_change_no_bit(name):
    family = FAMILIES[name]
    batch = family.inputs(ROWS["ragged"])
    expected = family.build().generate(**batch(), **SETTINGS)
    for method in (SparseReading(), SparseReading(keep_ratio=1.0, min_keys=1)):
        model = vlmopt.optimize(copy.deepcopy(family.build()), Policy(read=method, gqa="kernel"))
        out = model.generate(**batch(), **SETTINGS)
        assert all(map(torch.equal, out.logits, expected.logits))
        why = [entry["why"] for entry in vlmopt.report(model).skipped if entry["what"] in ("sparse reading", "read")]
        assert why in (
            ["no token was generated over min_keys=8192 keys or more"],
            ["changes nothing at keep_ratio=1.0"],
        )


def test_every_token_chooses_anew_and_the_report_says_what_was_read():
    family = FAMILIES["llava"]
    batch = family.inputs(ROWS["one"])
    model = vlmopt.optimize(built(family, "sdpa"), Policy(read=METHOD))
    model.generate(**batch(), **SETTINGS)
    keys = batch.ids.shape[1] + 4
    few = max(4, math.ceil(0.2 * keys))
    read = [(1, keys), (2, few), (3, keys), (4, few), (5, few)]  # layer 0 chooses for nobody
    assert vlmopt.report(model).read == [{"layer": i, "keys": keys, "read": n} for i, n in read]
    assert f"3 of 6 layers read {3 * few} of {3 * keys} keys for the last token" in str(vlmopt.report(model))


# ---- what is refused


def test_what_excludes_it():
    for other, words in (
        ({"kv": kv.SnapKV()}, "read and snap_kv exclude each other.*kv to save memory"),
        ({"attention": [ImageBoost()]}, "read and image_boost exclude each other"),
    ):
        with pytest.raises(ValueError, match=words):
            Policy(read=SparseReading(), **other)
        Policy(read=SparseReading(keep_ratio=1.0), **other)


def test_assisted_decoding_and_no_cache_read_all_keys_and_say_so():
    family = FAMILIES["llava"]
    batch = family.inputs(ROWS["one"])
    for setting, words in (({"prompt_lookup_num_tokens": 2}, "assisted"), ({"use_cache": False}, "without a cache")):
        expected = family.build().generate(**batch(), **SETTINGS, **setting)
        model = vlmopt.optimize(built(family, "sdpa"), Policy(read=METHOD))
        out = model.generate(**batch(), **SETTINGS, **setting)
        assert torch.equal(out.sequences, expected.sequences)
        whys = [entry["why"] for entry in vlmopt.report(model).skipped if entry["what"] == "sparse reading"]
        assert len(whys) == 1
        assert words in whys[0]


def test_capped_logits_are_the_kernels_and_the_report_says_so():
    def config():
        made = tiny.paligemma()
        made.text_config = Gemma2Config(**tiny.TEXT, head_dim=16, layer_types=["full_attention"] * 6)
        return made

    family = replace(FAMILIES["paligemma"], name="paligemma2", config=config)
    batch = family.inputs(ROWS["one"])
    expected = family.build("eager").generate(**batch(), **SETTINGS)
    model = vlmopt.optimize(built(family, "eager"), Policy(read=METHOD))
    assert all(map(torch.equal, model.generate(**batch(), **SETTINGS).logits, expected.logits))
    (why,) = [entry["why"] for entry in vlmopt.report(model).skipped if entry["what"] == "sparse reading"]
    assert "capped" in why


def test_a_schedule_without_layers_that_reuse_is_refused():
    model = copy.deepcopy(FAMILIES["llava"].build())
    with pytest.raises(ValueError, match=r"every one of the 6 layers of Llava.* reads all keys"):
        vlmopt.optimize(model, Policy(read=SparseReading(full="0:")))
    with pytest.raises(ValueError, match="layer '9' does not exist"):
        vlmopt.optimize(model, Policy(read=SparseReading(full="9")))
