"""What evictions save while a batch of eight runs: bytes that are alive at once, and those of the cache itself."""

from __future__ import annotations

import copy

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, GREEDY, Image
from tests.support.live import Live
from vlmopt import kv

ROWS = [[300, Image(n % 2), 280 + n] for n in range(8)]
FEW = {"keep_ratio": 0.1, "protect": "ends", "recent": 4}


def run(policy, new=4):
    family = FAMILIES["llava"]
    batch = family.inputs(ROWS)
    model = vlmopt.optimize(copy.deepcopy(family.build()), policy)
    with torch.inference_mode(), Live() as live:
        out = model.generate(**batch(), max_new_tokens=new, return_dict_in_generate=True, **GREEDY)
    return live.peak, vlmopt.report(model), out.past_key_values


@pytest.fixture(scope="module")
def dense():
    return run(vlmopt.Policy())


@pytest.mark.parametrize("budgets", ["even", "pyramid"])
def test_the_peak_of_a_prefill_falls_where_keys_leave_layer_by_layer(budgets, dense):
    """All but the layers that still run have let go: five sixths of what leaves, less what scoring takes."""
    peak, report, _ = run(vlmopt.Policy(kv=kv.KeyDiff(layer_budgets=budgets, **FEW)))
    gone = report.kv_bytes_prompt - report.kv_cache_bytes
    assert gone > 0.8 * report.kv_bytes_prompt
    assert dense[0] - peak > 0.75 * gone


def test_budgets_that_wait_for_all_layers_leave_the_peak(dense):
    peak, report, _ = run(vlmopt.Policy(kv=kv.VLCache(**FEW)))
    assert report.kv_cache_bytes < 0.3 * report.kv_bytes_prompt
    assert peak > dense[0] - 0.1 * report.kv_bytes_prompt


def test_bytes_are_those_of_the_cache(dense):
    _, report, cache = run(vlmopt.Policy(kv=kv.KeyDiff(**FEW)), new=1)
    held = sum(t.untyped_storage().nbytes() for layer in cache.layers for t in (layer.keys, layer.values))
    assert report.kv_cache_bytes == held  # a storage of its own: nothing keeps the rest alive
    assert sum(entry["bytes_after"] for entry in report.kv) == held
    _, whole, cache = dense
    assert report.kv_bytes_prompt == whole.kv_cache_bytes
