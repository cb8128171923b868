"""Dropping tokens equals an independent dense model whose mask forbids them, for every family and way of dropping."""

from __future__ import annotations

import copy

import pytest
import torch

import vlmopt
from tests.support.compact import compact_logits
from tests.support.families import FAMILIES, GREEDY, HYBRID, MASKABLE, Image, Video
from tests.support.mechanism import (
    BATCHES,
    LOGITS,
    NEW_TOKENS,
    SCHEDULES,
    TOLERANCE,
    Case,
    DropByOrdinal,
    answer,
    cell,
    check,
    expected_lengths,
    forward,
    gap,
    generate,
    stored_lengths,
)

CELLS = [
    cell(family, schedule, "keep", prompts, attn)
    for family in MASKABLE
    for schedule in SCHEDULES
    for prompts in BATCHES
    for attn in ("eager", "sdpa")
    if (prompts, attn) != ("unpadded", "eager") and (not family.extra or (prompts != "right" and attn == "sdpa"))
]


@pytest.mark.parametrize(("family", "schedule", "positions", "prompts", "attn"), CELLS)
def test_removal_equals_the_masked_reference(family, schedule, positions, prompts, attn):
    check(Case(family, schedule, positions, prompts), attn)


@pytest.mark.parametrize("positions", ["keep", "pospad"])
@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in HYBRID])
def test_hybrid_decoders_equal_the_compact_reference(family, schedule, positions):
    """A recurrent layer cannot be masked, so the reference really runs on the survivors, one row at a time."""
    case = Case(family, schedule, positions, "ragged")
    batch = case.batch
    removal = case.removal(batch)
    with case.optimized() as model:
        logits = forward(model, batch)
        out = generate(model, batch)
        for row in range(len(batch.ids)):
            expected = compact_logits(family.build("sdpa"), batch(), removal, row)[0]
            assert gap(logits[row, removal.kept()[row]], expected) < TOLERANCE
        assert stored_lengths(out.past_key_values) == expected_lengths(out.past_key_values, removal.lengths)
        uncached = generate(model, batch, use_cache=False)
        assert torch.equal(out.sequences, uncached.sequences)
        assert gap(torch.stack(out.logits, 1), torch.stack(uncached.logits, 1)) < TOLERANCE


def rows_with_video(family):
    two = [[4, Video(0), 5], [2, Video(1), 3, Image(0), 4]]
    return two if len(family.videos) > 1 else [[4, Video(0), 5, Image(0), 2]]


@pytest.mark.parametrize(
    ("family", "schedule", "positions"),
    [cell(f, schedule, positions) for f in MASKABLE if f.videos for schedule in SCHEDULES for positions in f.positions],
)
def test_video_equals_the_masked_reference(family, schedule, positions):
    case = Case(family, schedule, positions)
    batch = family.inputs(rows_with_video(family))
    reference, kept = case.reference(batch), case.removal(batch).kept()
    with case.optimized() as model:
        assert gap(forward(model, batch)[kept], reference.forward(batch())[kept]) < TOLERANCE
        out = generate(model, batch)
    expected = reference.generate(batch(), max_new_tokens=NEW_TOKENS, **GREEDY, **LOGITS)
    assert torch.equal(out.sequences, expected.sequences)
    assert gap(torch.stack(out.logits, 1), torch.stack(expected.logits, 1)) < TOLERANCE


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in FAMILIES.values()])
def test_neutral_and_empty_policies_change_no_bit(family, attn):
    plain, batch = family.build(attn), family.inputs(BATCHES["ragged"][0])
    expected, sequences = forward(plain, batch), generate(plain, batch)
    for methods in ([DropByOrdinal(keep_ratio=1.0), DropByOrdinal(keep_ratio=1.0, layer=2, positions="pospad")], []):
        with vlmopt.optimized(copy.deepcopy(plain), vlmopt.Policy(prune=methods)) as model:
            assert torch.equal(forward(model, batch), expected)
            assert all(map(torch.equal, generate(model, batch).logits, sequences.logits))


@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in FAMILIES.values()])
def test_text_only_prompts_change_no_bit(family):
    plain, batch = family.build("sdpa"), family.inputs([[7], [4]])
    with Case(family, "progressive", "pospad").optimized() as model:
        assert torch.equal(forward(model, batch), forward(plain, batch))
        out, expected = generate(model, batch), generate(plain, batch)
        assert all(map(torch.equal, out.logits, expected.logits))
        assert type(out.past_key_values) is type(expected.past_key_values)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_dropped_places_stay_in_the_output(name):
    """Logits keep the prompt's length, so labels and index-valued slices still fit."""
    case = Case(FAMILIES[name], "progressive", "keep", "ragged")
    batch, expected = case.batch, answer(case)
    with case.optimized() as model:
        last = forward(model, batch, logits_to_keep=1)
        assert gap(last[:, 0], expected.forward[:, -1]) < TOLERANCE
        after_kept = torch.cat([torch.zeros_like(expected.kept[:, :1]), expected.kept[:, :-1]], 1)
        labels = batch.ids.masked_fill(~after_kept | batch.visual | ~batch.real, -100)
        loss = model(**batch(), labels=labels).loss
    targets = labels[:, 1:].flatten()
    wanted = torch.nn.functional.cross_entropy(expected.forward[:, :-1].flatten(0, 1), targets, ignore_index=-100)
    assert torch.allclose(loss, wanted, atol=TOLERANCE)
