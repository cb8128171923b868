"""The oracles against each other and against the plain models, before anything of the library is trusted to them."""

from __future__ import annotations

import pytest
import torch

from tests.support.compact import compact_logits
from tests.support.families import FAMILIES, GREEDY, HYBRID, LAYERS, MASKABLE, Batch, Image
from tests.support.reference import Reference, Removal, Stage, decoder_of

ROWS = [[5, Image(0), 7], [3, Image(1), Image(2), 6], [9]]


def removal(batch: Batch, schedule: dict[int, tuple[int, ...]], positions: str = "keep") -> Removal:
    stages = [
        Stage(k, batch.visual & torch.isin(batch.ordinal % 10, torch.tensor(mods)), positions)
        for k, mods in schedule.items()
    ]
    return Removal(batch.real, batch.span, stages, LAYERS)


def names(families: list) -> list:
    return [pytest.param(f, id=f.name) for f in families]


@pytest.mark.parametrize("family", names(MASKABLE))
def test_nothing_removed_is_the_plain_model(family):
    model, batch = family.build("eager"), family.inputs(ROWS)
    reference = Reference(model)
    with torch.no_grad():
        plain = model(**batch()).logits
    assert (reference.forward(batch()) - plain)[batch.real].abs().max() < 1e-4
    expected = model.generate(**batch(), max_new_tokens=3, **GREEDY)
    assert torch.equal(reference.generate(batch(), max_new_tokens=3, **GREEDY), expected)


@pytest.mark.parametrize("schedule", [{0: (1, 2, 6)}, {2: (1, 2, 6)}, {0: (1, 2), 2: (1, 2, 4), 4: (5, 6, 9)}], ids=str)
@pytest.mark.parametrize("positions", ["keep", "pospad"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava", "internvl"])
def test_masked_equals_compact(name, positions, schedule):
    family = FAMILIES[name]
    model, batch = family.build("sdpa"), family.inputs(ROWS)
    plan = removal(batch, schedule, positions)
    masked = Reference(model).remove(plan).forward(batch())
    for row in range(len(ROWS)):
        compact = compact_logits(model, batch(), plan, row)[0]
        assert (masked[row, plan.kept()[row]] - compact).abs().max() < 1e-4


@pytest.mark.parametrize("family", names(HYBRID))
def test_compact_without_removal_is_the_plain_model(family):
    model, batch = family.build("sdpa"), family.inputs(ROWS)
    with torch.no_grad():
        plain = model(**batch()).logits
    for row in range(len(ROWS)):
        compact = compact_logits(model, batch(), removal(batch, {}), row)
        assert (compact[0] - plain[row, batch.real[row]]).abs().max() < 1e-4


def test_repacked_positions_are_those_of_a_shorter_prompt():
    family = FAMILIES["llava"]
    model, batch = family.build("sdpa"), family.inputs(ROWS[1:2])
    plan, seen = removal(batch, {0: (1, 2, 6)}, "repack"), {}
    hook = decoder_of(model).register_forward_pre_hook(lambda m, a, kw: seen.update(kw), with_kwargs=True)
    with torch.no_grad():
        model(**batch())
        hook.remove()
        short = decoder_of(model)(inputs_embeds=seen["inputs_embeds"][:, plan.kept()[0]]).last_hidden_state
        short = model.lm_head(short)
    masked = Reference(model).remove(plan).forward(batch())
    assert (masked[:, plan.kept()[0]] - short).abs().max() < 1e-4
    kept = Reference(model).remove(removal(batch, {0: (1, 2, 6)})).forward(batch())
    assert (kept[:, plan.kept()[0]] - short).abs().max() > 1e-2


def test_markers_change_the_answer_and_are_written_at_run_ends():
    batch = FAMILIES["llava"].inputs([[2, Image(), Image(), 3]])
    plan = removal(batch, {0: (5, 6), 2: (1, 2, 3, 4, 5, 6)}, "pospad")
    first = int(batch.visual[0].nonzero()[0])
    runs = [[i - first for i in run] for _, run in plan.runs[2]]
    assert runs == [[1, 2, 3, 4], [11, 12, 13, 14], [21, 22, 23, 24], [31]]
    assert [run[-1] - first for _, run in plan.runs[0]] == [6, 15, 16, 26]  # ordinals 15 and 16: two images
    keep = removal(batch, {0: (5, 6)}).kept()
    marked = removal(batch, {0: (5, 6)}, "pospad").kept()
    assert int(marked.sum()) == int(keep.sum()) + 4
