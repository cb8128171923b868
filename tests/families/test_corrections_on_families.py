"""The table of corrections crossed with the families: promises that hold for every correction on every model."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

import vlmopt
from tests.support.corrections import SETTINGS, TABLE, heads, made
from tests.support.families import FAMILIES, GREEDY, Image
from tests.support.mechanism import TOLERANCE, forward, gap, generate
from tests.support.snapshot import differences, snapshot
from vlmopt import attention_fix
from vlmopt.attention_fix import Tower
from vlmopt.checks import model_facts
from vlmopt.families import families
from vlmopt.pruning import Debias, FastV
from vlmopt.runtime.structure import structure_of

ROWS: list[list[Any]] = [[5, Image(0), 7], [3, Image(1), 4, Image(2), 6], [9]]
PROMISED = [family for family in FAMILIES.values() if not family.extra]


def cells():
    for family in PROMISED:
        for name in SETTINGS:
            tower = any(isinstance(need, Tower) for need in made(name, family).needs)
            if not tower or families()[family.name].by_token:
                yield pytest.param(family, name, id=f"{family.name}-{name}")


def run(model, batch):
    out = model.generate(**batch(), max_new_tokens=3, output_scores=True, return_dict_in_generate=True, **GREEDY)
    return torch.stack(out.scores, 1).clamp_min(-100), vlmopt.report(model)  # suppressed tokens are -inf


def test_the_table_is_complete():
    assert set(TABLE) == {
        n for n, c in attention_fix.registry.items() if c.__module__.startswith("vlmopt.attention_fix.")
    }


@pytest.mark.parametrize(("family", "name"), cells())
def test_a_correction_keeps_its_promises(family, name):
    """Does something, nothing to samples without images, the same alone and in a batch, and leaves no trace."""
    method, model = made(name, family), copy.deepcopy(family.build("sdpa"))
    policy = vlmopt.Policy(attention=[method])
    assert vlmopt.Policy.load(json.loads(policy.to_json())) == policy
    batch = family.inputs(ROWS)
    with vlmopt.optimized(model, "dense"):
        plain, _ = run(model, batch)
    before = snapshot(model)
    vlmopt.optimize(model, policy)
    scores, report = run(model, batch)
    fast = getattr(method, "passthrough", "exact") == "fast"
    assert gap(scores[2], plain[2]) <= (TOLERANCE if fast else 0), "the sample without an image"
    gated = family.name == "qwen3_5" and any(entry["why"].endswith("gated") for entry in report.skipped)
    assert (gap(scores[:2], plain[:2]) < TOLERANCE) == (name.startswith("sink_diagnosis") or gated)
    assert [entry["method"] for entry in report.corrections] == [method.name] or gated
    json.dumps(report.to_dict())
    assert method.name in str(report)
    again, _ = run(model, batch)
    assert torch.equal(scores, again)
    alone, _ = run(model, family.inputs([ROWS[2]]))
    assert alone.isfinite().any()
    vlmopt.restore(model)
    assert differences(before, snapshot(model)) == []


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.skipif("gemma4" not in FAMILIES, reason="family not in this release")
def test_rows_that_no_logit_needs_are_read_where_a_correction_reads_them(name):
    """`generate` lets Gemma4 leave them out of its last layers, a forward does not: both must say the same."""
    family = FAMILIES["gemma4"]
    method = made(name, family)
    if any(isinstance(need, Tower) for need in method.needs):
        pytest.skip("reads inside the tower")
    batch, found = family.inputs(ROWS[:2]), []
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), vlmopt.Policy(attention=[method])) as model:
        logits = forward(model, batch)[:, -1]
        found.append(vlmopt.report(model).corrections)
        out = generate(model, batch, max_new_tokens=1)
        found.append(vlmopt.report(model).corrections)
    assert gap(logits, out.logits[0]) < TOLERANCE
    if name.startswith("sink_diagnosis"):
        heard = [[(sample["summary"], sample["tokens"]) for sample in entry["found"]] for (entry,) in found]
        assert heard[0] == heard[1]


def test_debiased_pruning_sinks_and_heads_in_one_call():
    family = FAMILIES["qwen2_5_vl"]
    policy = [Debias(FastV(keep_ratio=0.5, layer=2), fit="per_sample"), made("visual_sink-easy", family),
              made("vision_heads-easy", family)]  # fmt: skip
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), policy) as model:
        _, report = run(model, family.inputs(ROWS))
    text = str(report)
    assert all(word in text for word in ("applied  debias", "applied  visual_sink", "applied  vision_heads"))
    assert [entry["method"] for entry in report.applied] == ["debias"]
    assert {entry["method"] for entry in report.corrections} == {"visual_sink", "vision_heads"}


def test_refusals():
    family = FAMILIES["llava"]
    model = copy.deepcopy(family.build("sdpa"))
    facts = model_facts(model, structure_of(model))
    boost, other = made("image_boost-easy", family), made("head_guided-easy", family)
    other_model = {**facts, "num_heads": 8}
    cases = [
        ([boost, other], "image boost"),
        ([boost, boost], "twice"),
        ([attention_fix.VisualSink()], "calibrate"),
        ([attention_fix.VisualSink(layers="9", dims=(3,))], "9"),
        ([attention_fix.VisualSink(dims=(64,))], "63"),
        ([attention_fix.HeadGain(profile=heads(other_model))], "num_heads"),
        ([attention_fix.InformedTokens(local_block=7)], "7"),
        ([attention_fix.ImageBoost(layers="6:")], "none of the 6"),
    ]
    before = snapshot(model)
    for policy, match in cases:
        with pytest.raises(ValueError, match=match):
            vlmopt.optimize(model, policy)
    assert differences(before, snapshot(model)) == []
