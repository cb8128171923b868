"""Gradient checkpointing: gradients are those without it, whatever a policy reads or corrects."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import vlmopt
from tests.support import corrections
from tests.support.families import FAMILIES, Image
from tests.support.selectors import SETTINGS, works_on
from tests.support.snapshot import differences, snapshot
from vlmopt import pruning
from vlmopt.families import families
from vlmopt.prefill import SparsePrefill

QWEN = FAMILIES["qwen2_5_vl"]
METHODS = {name: m for name, m in SETTINGS.items() if works_on(families()["qwen2_5_vl"], m)}
METHODS |= {name: corrections.made(name, QWEN) for name in corrections.SETTINGS}
METHODS["sparse"] = vlmopt.Policy(prune=[pruning.FastV(keep_ratio=0.5, layer=2)], prefill=SparsePrefill(min_len=1))


def gradients(policy, reentrant=None, family=QWEN, first="optimize"):
    model = copy.deepcopy(family.build()).train()
    if first == "optimize":
        vlmopt.optimize(model, policy)
    if reentrant is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.enable_input_require_grads()  # what reentrant checkpoints of frozen embeddings need
    if first != "optimize":
        vlmopt.optimize(model, policy)
    batch = family.inputs([[5, Image(0), 7], [3, Image(1), 4, Image(0), 6]])
    for seed in (0, 1):  # two forwards before one backward, as in gradient accumulation
        inputs = {**batch(), "use_cache": False}
        inputs["pixel_values"] = inputs["pixel_values"] * (1 + seed)
        labels = inputs["input_ids"].masked_fill(batch.visual | ~batch.real, -100)
        labels[:, :8] = -100
        loss = model(**inputs, labels=labels).loss
        total = loss if not seed else total + loss  # noqa: F821
    report = vlmopt.report(model)
    total.backward()
    assert vlmopt.report(model).to_dict() == report.to_dict()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.usefixtures("untrained_scorer")
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_gradients_are_those_without_checkpointing(method):
    expected = gradients(method)
    assert all(value.isfinite().all() for value in expected.values())
    for reentrant in (False, True):
        got = gradients(method, reentrant)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(got[name], value, rtol=1e-4, atol=1e-6), (name, reentrant)


@pytest.mark.parametrize("family", [FAMILIES[n] for n in ("llava", "gemma3", "qwen3_vl")], ids=lambda f: f.name)
def test_other_families_and_orders(family):
    policy = [pruning.FastV(keep_ratio=0.5, layer=2), replace(corrections.made("image_boost-easy", family), gamma=1.0)]
    expected = gradients(policy, family=family)
    for reentrant, first in ((False, "enable"), (True, "enable")):
        got = gradients(policy, reentrant, family, first)
        assert got.keys() == expected.keys()
        assert all(torch.allclose(got[n], v, rtol=1e-4, atol=1e-6) for n, v in expected.items())


def test_restore_gives_checkpointing_functions_back():
    model = copy.deepcopy(QWEN.build()).train()
    model.gradient_checkpointing_enable()
    inputs = QWEN.inputs([[5, Image(0), 7]])()
    model(**inputs)
    before = snapshot(model)
    vlmopt.optimize(model, [pruning.FastV(keep_ratio=0.5, layer=2)])
    model(**inputs)
    vlmopt.restore(model)
    assert differences(before, snapshot(model)) == []
    vlmopt.optimize(model, [pruning.FastV(keep_ratio=0.5, layer=2)])
    model(**inputs)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    theirs = [layer._gradient_checkpointing_func for layer in model.model.language_model.layers]
    vlmopt.restore(model)
    assert [layer._gradient_checkpointing_func for layer in model.model.language_model.layers] == theirs
