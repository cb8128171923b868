"""Position policies: markers at the end of dropped runs (pospad) and re-numbered survivors (repack)."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, GREEDY, MASKABLE
from tests.support.mechanism import (
    BATCHES,
    NEW_TOKENS,
    SCHEDULES,
    TOLERANCE,
    Case,
    answer,
    cell,
    check,
    forward,
    gap,
    generate,
)
from tests.support.reference import Removal, Stage

CELLS = [
    cell(family, schedule, positions, prompts, attn)
    for family in MASKABLE
    for schedule in SCHEDULES
    for positions in family.positions[1:]
    for prompts in BATCHES
    for attn in ("eager", "sdpa")
    if (attn == "sdpa" or prompts == "ragged") and (not family.extra or (attn, prompts) == ("sdpa", "ragged"))
]


@pytest.mark.parametrize(("family", "schedule", "positions", "prompts", "attn"), CELLS)
def test_positions_equal_the_masked_reference(family, schedule, positions, prompts, attn):
    check(Case(family, schedule, positions, prompts), attn)


@pytest.mark.parametrize("schedule", ["pre", "progressive"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava"])
def test_last_marker_keeps_the_token_at_the_end_of_its_run(name, schedule):
    case = Case(FAMILIES[name], schedule, "pospad", "ragged")
    batch, mean = case.batch, case.removal(case.batch)
    last = Removal(batch.real, batch.span, [dataclasses.replace(s, marker="last") for s in mean.stages.values()], 6)
    expected = case.reference(batch).remove(last).forward(batch())
    methods = [dataclasses.replace(m, marker="last") for m in case.policy.prune]
    with vlmopt.optimized(case.model(), vlmopt.Policy(prune=methods)) as model:
        logits = forward(model, batch)
    assert gap(logits[last.kept()], expected[last.kept()]) < TOLERANCE
    assert gap(logits[last.kept()], answer(case).forward[last.kept()]) > 100 * TOLERANCE  # not the mean


@pytest.mark.parametrize("name", ["llava", "gemma3", "smolvlm"])
def test_repack_differs_from_keep(name):
    keep, repack = (answer(Case(FAMILIES[name], "mid", positions, "ragged")) for positions in ("keep", "repack"))
    assert gap(keep.forward[keep.kept], repack.forward[repack.kept]) > 100 * TOLERANCE


@pytest.mark.parametrize("name", [f.name for f in FAMILIES.values() if f.rope == "mrope"])
def test_repack_is_refused_for_multi_axis_positions(name):
    model = copy.deepcopy(FAMILIES[name].build())
    with pytest.raises(ValueError, match="repack"):
        vlmopt.optimize(model, Case(FAMILIES[name], "mid", "repack").policy)


def test_keep_and_pospad_may_follow_one_another():
    """Runs are those of the sequence as it stands: what left earlier without a marker does not part them."""
    case = Case(FAMILIES["llava"], "progressive", "keep", "ragged")
    batch, removal = case.batch, case.removal(case.batch)
    kinds = dict(zip(case.family.prune_layers, ("keep", "pospad", "keep"), strict=True))
    stages = [Stage(s.layer, s.drop, kinds[s.layer]) for s in removal.stages.values()]
    mixed = Removal(batch.real, batch.span, stages, 6)
    methods = [dataclasses.replace(m, positions=kinds[m.layer]) for m in case.policy.prune]
    with vlmopt.optimized(case.model(), vlmopt.Policy(prune=methods)) as model:
        logits, out = forward(model, batch), generate(model, batch)
    reference = case.reference(batch).remove(mixed)
    assert gap(logits[mixed.kept()], reference.forward(batch())[mixed.kept()]) < TOLERANCE
    assert torch.equal(out.sequences, reference.generate(batch(), max_new_tokens=NEW_TOKENS, **GREEDY))
