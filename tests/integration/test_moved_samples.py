"""Samples of a cache that change places, leave or double take along all that is known of them."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

import vlmopt
from tests.support.families import FAMILIES, GREEDY, Image
from tests.support.mechanism import LOGITS, gap
from vlmopt import kv
from vlmopt.attention_fix import ImageBoost, VisionHeads
from vlmopt.decoding import VCD, TextContrast
from vlmopt.pruning import FastV

POLICIES = {
    "snap_kv": {"kv": kv.SnapKV(keep_ratio=0.4, recent=2, window=8)},
    "vl_cache": {"kv": kv.VLCache(keep_ratio=0.4, recent=2)},
    "correction": {"attention": [ImageBoost(layers="0:", alpha=2.0)]},
    "correction_behind_a_cut": {"prune": [FastV(keep_ratio=0.5)], "attention": [ImageBoost(layers="0:", alpha=2.0)]},
    "gains": {"attention": [VisionHeads(layers="0:")]},
    "text_contrast": {"decoding": [TextContrast()]},
    "vcd": {"decoding": [VCD()]},
}
ROWS = [[5, Image(0), 7], [9, Image(1), 12], [3, Image(0), 2, Image(1), 8]]
MOVES = {"swapped": [2, 1, 0], "left": [2], "left_and_swapped": [2, 0], "doubled": [1, 1, 2, 2]}
SETTINGS = {"max_new_tokens": 4, **GREEDY, **LOGITS}


def answers(policy, family, rows):
    """Logits of a second turn, whose samples are those of the first in the order `rows`."""
    model = vlmopt.optimize(copy.deepcopy(family.build()), vlmopt.Policy(**policy))
    batch, cache = family.inputs(ROWS), DynamicCache(config=family.build().config.get_text_config())
    first = model.generate(**batch(), past_key_values=cache, **SETTINGS)
    cache.batch_select_indices(rows)
    deltas = getattr(model.model, "rope_deltas", None)
    if deltas is not None:  # the model's own memory of positions
        model.model.rope_deltas = deltas[rows]
    ids = torch.cat([first.sequences, torch.arange(40, 46).expand(len(ROWS), -1)], 1)[rows]
    mask = torch.ones_like(ids)
    mask[:, : batch.ids.shape[1]] = batch.inputs["attention_mask"][rows]
    turn = {"input_ids": ids, "attention_mask": mask, **family.token_types(ids)}
    out = model.generate(**turn, past_key_values=cache, **SETTINGS)
    return torch.stack(out.logits, 1), vlmopt.report(model)


CELLS = [("llava", policy, move) for policy in POLICIES for move in MOVES]
CELLS += [("qwen2_5_vl", policy, "left_and_swapped") for policy in POLICIES]


@pytest.mark.parametrize(("name", "policy", "move"), CELLS)
def test_a_second_turn_of_moved_samples(name, policy, move):
    family, rows = FAMILIES[name], torch.tensor(MOVES[move])
    expected, before = answers(POLICIES[policy], family, torch.arange(len(ROWS)))
    out, report = answers(POLICIES[policy], family, rows)
    assert gap(out, expected[rows]) < 1e-5 * float(expected.abs().max())
    assert {line["what"] for line in report.skipped} == {line["what"] for line in before.skipped}
    assert [[entry["kept"][i] for i in rows] for entry in before.kv] == [entry["kept"] for entry in report.kv]


@pytest.mark.parametrize("policy", ["snap_kv", "correction", "correction_behind_a_cut", "gains"])
def test_generated_tokens_of_moved_samples(policy):
    """Without a prompt in between: a loop of one's own that lets finished samples go."""
    family, rows, logits = FAMILIES["llava"], torch.tensor([2, 0]), []
    for moved in (False, True):
        model = vlmopt.optimize(copy.deepcopy(family.build()), vlmopt.Policy(**POLICIES[policy]))
        batch, cache = family.inputs(ROWS), DynamicCache()
        first = model.generate(**batch(), past_key_values=cache, **SETTINGS)
        mask = torch.ones_like(first.sequences)
        mask[:, : batch.ids.shape[1]] = batch.inputs["attention_mask"]
        ids = first.sequences[:, -1:]
        if moved:
            cache.batch_select_indices(rows)
            ids, mask = ids[rows], mask[rows]
        with torch.no_grad():
            logits.append(model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits)
    assert gap(logits[1], logits[0][rows]) < 1e-5 * float(logits[0].abs().max())
