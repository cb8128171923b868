"""Decoding with grouped rows: the same numbers as the model's kernel, where it applies, and nowhere else."""

from __future__ import annotations

import copy

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, Image
from tests.support.mechanism import gap, generate
from vlmopt import kv
from vlmopt.pruning import FastV, Uniform
from vlmopt.runtime.components.grouped_decode import LEAST_KEYS, GroupedDecode, GroupedLayer
from vlmopt.runtime.points import AttentionCall
from vlmopt.runtime.session import session_of

TOLERANCE = 1e-5
ROWS = {"one": [[5, Image(0), 7]], "ragged": [[5, Image(0), 7], [3, Image(1), 6]]}
GROUPED = [f for f in FAMILIES.values() if not f.extra]


@pytest.fixture
def answers(monkeypatch):
    """Count how often grouped rows stood in for the kernel."""
    found = []
    compute = GroupedLayer.compute

    def counted(self, *args, **kwargs):
        out = compute(self, *args, **kwargs)
        found.append(out is not None)
        return out

    monkeypatch.setattr(GroupedLayer, "compute", counted)
    return found


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in GROUPED])
def test_the_numbers_are_those_of_the_kernel(family, rows, answers):
    batch = family.inputs(ROWS[rows])
    expected = generate(family.build(), batch)
    model = vlmopt.optimize(copy.deepcopy(family.build()), vlmopt.Policy(gqa="grouped"))
    out = generate(model, batch)
    assert torch.equal(out.sequences, expected.sequences)
    assert gap(torch.stack(out.logits), torch.stack(expected.logits)) < TOLERANCE
    assert torch.equal(out.logits[0], expected.logits[0])  # the prompt is the kernel's
    assert any(answers) or rows == "ragged"  # a batch with padding has a mask


@pytest.mark.parametrize("prune", [(Uniform(keep_ratio=0.5),), (FastV(keep_ratio=0.25),)])
@pytest.mark.parametrize("method", [None, kv.SnapKV(keep_ratio=0.3, recent=2)])
def test_behind_cuts_and_evictions(prune, method, answers):
    family = FAMILIES["qwen2_5_vl"]
    batch = family.inputs(ROWS["one"])
    expected, out = (
        generate(vlmopt.optimize(copy.deepcopy(family.build()), vlmopt.Policy(prune, kv=method, gqa=gqa)), batch)
        for gqa in ("kernel", "grouped")
    )
    assert torch.equal(out.sequences, expected.sequences)
    assert gap(torch.stack(out.logits), torch.stack(expected.logits)) < TOLERANCE
    assert any(answers)


def wide(shape, keys, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    batch, heads, key_heads, width = shape
    return [
        torch.randn(batch, n, length, width, generator=generator).to(dtype)
        for n, length in ((heads, 1), (key_heads, keys), (key_heads, keys))
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_by_itself_from_where_it_was_measured_to_pay(dtype, monkeypatch):
    layer, times = GroupedLayer(always=False), 4 // dtype.itemsize  # half precision has to read more keys
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def computed(query, key, value, mask=None, **options):
        return layer.compute(None, AttentionCall(0, torch.nn.Identity(), query, key, value, mask, options))

    assert computed(*wide((1, 8, 2, 128), times * LEAST_KEYS - 1, dtype)) is None
    assert computed(*wide((1, 8, 2, 256), LEAST_KEYS - 1, dtype)) is None
    assert computed(*wide((1, 8, 2, 64), 2 * times * LEAST_KEYS - 1, dtype)) is None
    assert computed(*wide((1, 8, 2, 32), 4 * times * LEAST_KEYS, dtype)) is None
    assert computed(*wide((1, 8, 1, 128), times * LEAST_KEYS, dtype)) is None  # one head for two threads
    assert computed(*wide((1, 8, 2, 128), times * LEAST_KEYS, dtype)) is not None
    assert computed(*wide((1, 8, 2, 256), LEAST_KEYS, dtype)) is not None
    assert computed(*wide((2, 8, 1, 128), times * LEAST_KEYS, dtype)) is not None
    query, key, value = wide((2, 8, 2, 64), 2 * times * LEAST_KEYS, dtype)
    assert computed(query, key, value, torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool)) is None
    assert computed(query.expand(-1, -1, 2, -1), key, value) is None
    out = computed(query, key, value, scaling=0.1, dropout=0.0)
    shared = key.repeat_interleave(4, 1), value.repeat_interleave(4, 1)
    expected = torch.nn.functional.scaled_dot_product_attention(query, *shared, scale=0.1).transpose(1, 2)
    assert out.shape == expected.shape == (2, 1, 8, 64)
    assert torch.allclose(out, expected, atol=1e-6 if dtype == torch.float32 else 1e-2)


def test_a_policy_that_changes_nothing_keeps_the_kernel():
    """Also on a model whose heads are wide enough."""
    family = FAMILIES["llava"]
    model = copy.deepcopy(family.build())
    for layer in model.model.language_model.layers:
        layer.self_attn.head_dim = 64  # what is asked for
    for policy, expected in (
        (vlmopt.Policy(), False),
        (vlmopt.Policy(kv=kv.SnapKV(keep_ratio=1)), False),
        (vlmopt.Policy(prune=[Uniform(keep_ratio=0.5)]), True),
        (vlmopt.Policy(prune=[Uniform(keep_ratio=0.5)], gqa="kernel"), False),
    ):
        with vlmopt.optimized(model, policy):
            session = session_of(model)
            assert session is not None
            assert (GroupedDecode.of(session) is not None) == expected


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"gqa='grouped' stands in for attn_implementation='sdpa'.*'eager'"):
        vlmopt.optimize(copy.deepcopy(FAMILIES["llava"].build("eager")), vlmopt.Policy(gqa="grouped"))
