"""Eviction beside corrections and sparse prefill in one policy, against edited attention over a masked full cache."""

from __future__ import annotations

import copy

import pytest
import torch

import vlmopt
from tests.integration.test_sparse_prefill import EVERYTHING, FEW, FULL
from tests.support.correction_oracle import Corrected
from tests.support.evicted import NEW, EvictedReference, generate, gone
from tests.support.families import FAMILIES, Image
from tests.support.mechanism import TOLERANCE, Case, gap
from tests.unit.test_corrections import METHODS, rules_of
from vlmopt import kv
from vlmopt.attention_fix import ImageBoost

ONE_SET = kv.SnapKV(keep_ratio=0.4, recent=2, window=8, per_head=False)
ROWS = [[5, Image(0), 7], [3, Image(1), 6], [9]]


class CorrectedEvicted(EvictedReference, Corrected):
    """Corrections see the keys that are left, and softmax runs over these."""

    def __init__(self, model, batch, rules):
        Corrected.__init__(self, model, batch, rules)
        self.gone, self.source = [], dict(enumerate(range(len(self.decoder.layers))))

    def here(self, layer):
        found = Corrected.here(self, layer)
        for end, left in self.gone:
            if self.past >= end and layer in left:
                found = found & ~left[layer][:, 0]
        return found

    def logits(self, layer, scores):
        return EvictedReference.logits(self, layer, Corrected.logits(self, layer, scores))


@pytest.mark.parametrize("cut", ["", "mid"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_corrections_of_what_is_left(family, name, cut):
    family = FAMILIES[family]
    batch, case = family.inputs(ROWS), Case(family, cut or "mid")
    policy = vlmopt.Policy(prune=case.policy.prune if cut else (), attention=[METHODS[name][0]], kv=ONE_SET)
    model = vlmopt.optimize(copy.deepcopy(family.build()), policy)
    out = generate(model, batch)
    oracle = CorrectedEvicted(family.build("eager"), batch, rules_of(family, [name]))
    oracle.remove(case.removal(batch) if cut else None).evict(gone(out.past_key_values, batch.ids.shape[1]))
    expected = generate(oracle, batch)
    assert torch.equal(out.sequences, expected.sequences)
    assert gap(torch.stack(out.logits, 1), torch.stack(expected.logits, 1)) < TOLERANCE
    assert len(vlmopt.report(model).kv) == 6


@pytest.mark.parametrize(
    "method", [kv.SnapKV(keep_ratio=0.4, recent=2, window=8), kv.VLCache(keep_ratio=0.4, recent=2)]
)
def test_a_sparse_prefill_that_keeps_every_key(method):
    """The same keys leave, since attention was the same."""
    family = FAMILIES["llava"]
    batch, model = family.inputs(ROWS), copy.deepcopy(family.build())
    with vlmopt.optimized(model, vlmopt.Policy(kv=method)):
        expected = generate(model, batch)
    with vlmopt.optimized(model, vlmopt.Policy(kv=method, prefill=FULL)):
        out = generate(model, batch)
        report = vlmopt.report(model)
    assert gap(torch.stack(out.logits), torch.stack(expected.logits)) < TOLERANCE
    assert len(report.prefill) == len(report.kv) == 6
    assert torch.equal(out.past_key_values.layers[0].keys, expected.past_key_values.layers[0].keys)


def test_after_a_sparse_prefill_and_a_correction():
    """All three at once, pruned as well: it runs, and each says what it did."""
    family = FAMILIES["qwen2_5_vl"]
    batch = family.inputs([[60, Image(0), 30]])
    policy = vlmopt.Policy(
        prune=Case(family, "mid").policy.prune, attention=[ImageBoost(layers="0:")], prefill=FEW, kv=ONE_SET
    )
    model = vlmopt.optimize(copy.deepcopy(family.build()), policy)
    out = generate(model, batch)
    report = vlmopt.report(model)
    assert report.applied
    assert report.corrections
    assert report.prefill
    assert len(report.kv) == 6
    assert out.sequences.shape[1] == batch.ids.shape[1] + NEW


def test_a_second_turn_behind_evicted_keys_is_dense():
    family = FAMILIES["llava"]
    batch, model = family.inputs(ROWS[:1]), copy.deepcopy(family.build())
    vlmopt.optimize(model, vlmopt.Policy(kv=ONE_SET, prefill=FULL))
    first = generate(model, batch)
    ids = torch.cat([first.sequences, torch.arange(40, 60)[None]], 1)
    turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model.generate(**turn, past_key_values=first.past_key_values, max_new_tokens=2)
    report = vlmopt.report(model)
    assert not report.prefill
    assert any("keys of earlier turns were evicted" in entry["why"] for entry in report.skipped)


def test_a_correction_of_rows_beside_heads_that_differ_is_refused():
    with pytest.raises(ValueError, match="per_head=False"):
        vlmopt.Policy(attention=[ImageBoost()], kv=kv.SnapKV(), prefill=EVERYTHING)
