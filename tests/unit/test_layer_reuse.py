"""Which layers read all keys: the cheapest schedule, against trying all; golden numbers of a row."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch

from tests.support.prefills import layer
from vlmopt.layer_reuse import LayerReuse
from vlmopt.policy import Policy
from vlmopt.reading import SparseReading
from vlmopt.runtime.components.sparse_reading import read_all, read_some
from vlmopt.runtime.points import AttentionCall
from vlmopt.search.reuse import RATIO, ROWS, ReuseSearch

MODEL = {"model_type": "x", "hidden_size": 8, "layers": 7, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4}


def reuse(errors, **more):
    return LayerReuse(model={**MODEL, "layers": len(errors)}, errors=errors, **{"samples": 1, **more})


def random_errors(seed, depth=7):
    values = torch.rand(depth, depth, generator=torch.Generator().manual_seed(seed)).tolist()
    return [values[n][:n] for n in range(depth)]


def total(errors, full):
    last, out = 0, 0.0
    for number, row in enumerate(errors):
        if number in full:
            last = number
        else:
            out += row[last] if row and row[last] is not None else float("inf")
    return out


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bound", [0.0, 0.1, 0.2, 0.35, 1.0])
def test_the_schedule_is_the_best_of_all(seed, bound):
    errors = random_errors(seed)
    errors[3] = []  # not measured
    errors[5][2] = None
    every = [{0, *more} for n in range(7) for more in itertools.combinations(range(1, 7), n)]
    allowed = [full for full in every if total(errors, full) / 7 <= bound]
    fewest = min(map(len, allowed))
    best = min(total(errors, full) for full in allowed if len(full) == fewest)
    found = reuse(errors).schedule(bound)
    assert len(found) == fewest
    assert total(errors, found) == pytest.approx(best)
    assert {0, 3} <= found


def test_round_trip_and_refusals():
    errors = random_errors(1)
    errors[4][1], errors[2] = None, []
    own = reuse(errors, samples=3)
    assert LayerReuse.from_dict(json.loads(json.dumps(own.to_dict()))) == own
    policy = Policy(read=SparseReading(reuse=own, max_error=0.1))
    assert Policy.load(json.loads(policy.to_json())) == policy
    assert policy.read.full_layers(7) == own.schedule(0.1)
    for change, words in (
        ({"errors": [[]] * 6}, "errors of 6 layers for a model of 7"),
        ({"errors": [[], [0.1], [0.1]] + [[]] * 4}, "layer 2 needs an error >= 0 or null for each of the 2"),
        ({"errors": [[], [-0.1]] + [[]] * 5}, "layer 1 needs"),
        ({"errors": [[], [float("nan")]] + [[]] * 5}, "layer 1 needs"),
        ({"errors": [[], ["a"]] + [[]] * 5}, "layer 1 needs"),
        ({"errors": 3}, "a list of lists"),
        ({"errors": ["abc"]}, "a list of lists"),
        ({"keep_ratio": 2.0}, "keep_ratio must be"),
        ({"model": {}}, "must hold layers"),
        ({"model": 3}, "must be a dict of facts"),
        ({"more": 1}, r"unknown keys \['more'\]"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            LayerReuse.from_dict({**own.to_dict(), **change})
    with pytest.raises(ValueError, match=r"less than the 0\.0625 at which"):
        SparseReading(reuse=own, keep_ratio=0.01)
    with pytest.raises(ValueError, match="measured elsewhere: hidden_size is 9"):
        own.check({**own.model, "hidden_size": 9})


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"keep_ratio": 0.0}, "keep_ratio"),
        ({"keep_ratio": 1.5}, "keep_ratio"),
        ({"min_keys": 0}, "min_keys"),
        ({"least": 0}, "least"),
        ({"full": "a"}, "malformed"),
        ({"max_error": -1.0}, "max_error"),
        ({"max_error": 0.5}, "max_error limits the errors of `reuse`"),
    ],
)
def test_settings_have_bounds(setting, words):
    with pytest.raises(ValueError, match=words):
        SparseReading(**setting)


def test_unknown_settings_and_wrong_kinds():
    with pytest.raises(ValueError, match=r"read: unknown setting 'keep_ration'.*keep_ratio"):
        Policy.load({"read": {"keep_ration": 0.1}})
    with pytest.raises(TypeError, match="read must be SparseReading"):
        Policy(read=3)
    with pytest.raises(TypeError, match="reuse must be"):
        SparseReading(reuse=[1])
    with pytest.raises(ValueError, match="a policy has one way of reading, got 2"):
        Policy.load([SparseReading(), SparseReading(least=9)])
    assert Policy.load([SparseReading(least=9)]).read == SparseReading(least=9)
    assert Policy.load({"format": 1, "prune": []}).read is None


def test_counts():
    method = SparseReading(keep_ratio=0.1, least=5)
    assert [method.count(n) for n in (3, 20, 51, 100, 101)] == [3, 5, 6, 10, 11]


def call_of(logits, groups=1, mask=None):
    """An attention call whose products are these logits [heads, n], over values that show the weights."""
    heads, n = logits.shape
    query = torch.eye(heads)[None, :, None]  # [1, H, 1, H]: picks a row of the keys' columns
    key = logits.T[None].expand(heads // groups, -1, -1)[None].contiguous()
    value = torch.eye(n).expand(1, heads // groups, n, n).contiguous()
    at = AttentionCall(0, torch.nn.Identity(), query, key, value, mask, {"scaling": 1.0})
    return query.unflatten(1, (heads // groups, groups)).squeeze(3), at


def test_the_golden_row():
    """Weights over a reused set are renormalised; the set holds .751 of the mass."""
    query, at = call_of(torch.tensor([[4.0, 1, 3, 0, 2, -1]]))
    whole, _ = read_all(query, at, 3, 5)
    assert float(whole[0, 0, 0, [0, 4, 1]].sum()) == pytest.approx(0.751002, abs=1e-6)
    out = read_some(query, at, torch.tensor([[[0, 4, 1]]]))
    assert torch.allclose(out[0, 0, 0], torch.tensor([0.843795, 0.04201, 0, 0, 0.114195, 0]), atol=1e-6)


def test_a_group_chooses_together_and_reads_its_own_token():
    query, at = call_of(torch.tensor([[9.0, 0, 0, 0, 0, 0], [0, 0, 9.0, 0, 0, 0]]), groups=2)
    _, index = read_all(query, at, 3, 5)
    assert index.shape == (1, 1, 3)
    assert sorted(index.flatten().tolist()) == [0, 2, 5]


def test_hidden_keys_are_neither_chosen_nor_read():
    mask = torch.tensor([[[[False, True, True, True, False, True]]]])
    query, at = call_of(torch.tensor([[9.0, 1, 2, 0, 9, 0]]), mask=mask)
    out, index = read_all(query, at, 3, 5)
    assert sorted(index.flatten().tolist()) == [1, 2, 5]
    assert not out[0, 0, 0, [0, 4]].any()
    some = read_some(query, at, torch.tensor([[[0, 1, 5]]]))
    assert not some[0, 0, 0, [0, 2, 3, 4]].any()
    added = torch.zeros(1, 1, 1, 6).masked_fill(~mask, torch.finfo(torch.float32).min)
    query, at = call_of(torch.tensor([[9.0, 1, 2, 0, 9, 0]]), mask=added)
    assert torch.allclose(read_all(query, at, 3, 5)[0], out)
    assert torch.allclose(read_some(query, at, torch.tensor([[[0, 1, 5]]])), some)


def test_the_search_measures_what_reading_few_keys_does():
    """Against loops over rows and heads."""
    layers = [layer(rows=90, batch=1, query_heads=4, key_heads=2, seed=seed) for seed in (0, 1)]
    search = ReuseSearch()
    assert search.measure(0, layers[0]).shape == (0,)
    (found,) = search.measure(1, layers[1]).tolist()
    count, off, size = math.ceil(90 * RATIO), 0.0, 0.0
    for row in range(90 - ROWS, 90):
        weights = []
        for p in layers:
            keys = p.k[0].repeat_interleave(2, 0)[:, : row + 1]
            weights.append((p.q[0, :, row, None] @ keys.mT * p.scale).softmax(-1)[:, 0])
        value = layers[1].v[0].repeat_interleave(2, 0)[:, : row + 1]
        for group in range(2):
            most = weights[0][2 * group : 2 * group + 2].amax(0)
            most[row] = 2
            chosen = most.topk(count).indices
            for head in (2 * group, 2 * group + 1):
                exact = weights[1][head] @ value[head]
                few = weights[1][head][chosen]
                off += float((few / few.sum() @ value[head][chosen] - exact).abs().sum())
                size += float(exact.abs().sum())
    assert found == pytest.approx(off / size, rel=1e-4)


def test_what_cannot_be_measured_is_left_out():
    search = ReuseSearch()
    search.measure(0, layer(rows=90, batch=1))
    assert search.measure(1, layer(rows=90, batch=2)).isnan().all()
    assert search.measure(1, layer(rows=40, width=90, batch=1)).isnan().all()
