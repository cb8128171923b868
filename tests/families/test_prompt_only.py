"""Signals see the prompt alone: the same tokens stay with a cache, without one, and beside a helper's candidates."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch

import vlmopt
from tests.support.corrections import TABLE, made
from tests.support.families import FAMILIES, GREEDY, MASKABLE, Batch, Family, Image
from tests.support.mechanism import LOGITS, TOLERANCE, Case, cell, gap, generate
from tests.support.selectors import SETTINGS, works_on
from vlmopt.families import families
from vlmopt.pruning import CoreMatching, Selector, ZipVL

pytestmark = pytest.mark.usefixtures("untrained_scorer")
PROMISED = [family for family in FAMILIES.values() if not family.extra]
READING = {name: method for name, method in SETTINGS.items() if method.query_aware}
READING["core_matching-prompt"] = CoreMatching(layer=4, max_ratio=1.0, min_ratio=0.0)
READING["zipvl-more_rows_than_there_are"] = ZipVL(tau=0.5, layer=4, rows=64)
WAYS: dict[str, dict[str, Any]] = {
    "uncached": {"use_cache": False},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "assistant": {},
}


@functools.cache
def batch_of(family: Family, side: str = "") -> Batch:
    """A prompt that ends like its own beginning, so that the first candidates come before the first token."""
    rows: Any = [[9, Image(0), 7]] if not side else [[9, Image(0), 7], [3, Image(1), 16]]
    batch = family.inputs(rows, padding_side=side or "left")
    if not side:
        batch.ids[0, -3:] = batch.ids[0, 1:4]
    return batch


def kept_sets(model: Any, batch: Batch, **settings: Any) -> list[list[list[bool]]]:
    """Which tokens every cut left, of every sample and image; no cut is left out."""
    model.generate(**batch(), **{"max_new_tokens": 3, **GREEDY, **settings})
    report = vlmopt.report(model)
    assert not report.skipped
    rows = range(len(batch.ids))
    return [[m.kept.tolist() for stage in report.stages(row) for m in stage.maps] for row in rows]


@functools.cache
def agrees(family: Family, side: str = "") -> bool:
    """Whether the unwrapped model answers the same with and without a cache."""
    model, batch = family.build("sdpa"), batch_of(family, side)
    with_cache, without = (torch.stack(generate(model, batch, use_cache=use).logits) for use in (True, False))
    return gap(with_cache, without) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "method"),
    [
        pytest.param(family, method, id=f"{family.name}-{name}")
        for family in PROMISED
        for name, method in READING.items()
        if works_on(families()[family.name], method)
    ],
)
def test_every_way_keeps_the_same_tokens(family: Family, method: Selector):
    batch = batch_of(family)
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), method) as model:
        expected = kept_sets(model, batch)
        for way, settings in WAYS.items():
            if way == "uncached" and not agrees(family):
                continue
            if way == "assistant":
                settings = {"assistant_model": family.build("sdpa", seed=1)}
            assert kept_sets(model, batch, **settings) == expected, way


@pytest.mark.parametrize("name", READING)
def test_padding_on_the_right_changes_no_choice(name: str):
    family, method = FAMILIES["llava"], READING[name]
    batch = batch_of(family, "right")
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), method) as model:
        expected = kept_sets(model, batch)
        assert kept_sets(model, batch, use_cache=False) == expected
        assert kept_sets(model, batch_of(family, "left")) == expected


RIGHT = [
    (f, schedule, p) for f in MASKABLE if not f.extra for schedule in ("pre", "mid", "progressive") for p in f.positions
]


@pytest.mark.parametrize(("family", "schedule", "positions"), [cell(*row) for row in RIGHT])
def test_generation_behind_padding_on_the_right(family: Family, schedule: str, positions: str):
    """`generate` reads the logits of the last column, padding or not: they are those of the reference."""
    case = Case(family, schedule, positions, "right")
    batch = case.batch
    with case.optimized() as model:
        cached, uncached = generate(model, batch), generate(model, batch, use_cache=False)
    if agrees(family, "right"):
        assert torch.equal(cached.sequences, uncached.sequences)
        assert gap(torch.stack(cached.logits), torch.stack(uncached.logits)) < TOLERANCE
    assert bool((cached.logits[0].abs().amax(1) > 0).all())
    # Re-packed padding has a position of its own; behind more padding than a sliding window a row sees no key at all.
    if positions != "repack" and family.name != "gemma3":
        expected = case.reference(batch).generate(batch(), max_new_tokens=4, **GREEDY, **LOGITS)
        assert torch.equal(cached.sequences, expected.sequences)
        assert gap(torch.stack(cached.logits), torch.stack(expected.logits)) < TOLERANCE


@pytest.mark.parametrize("name", TABLE)
def test_corrections_behind_padding_on_the_right(name: str):
    case = Case(FAMILIES["llava"], "mid", "repack", "right")
    policy = vlmopt.Policy(prune=case.policy.prune, attention=[made(f"{name}-easy", case.family)])
    with vlmopt.optimized(case.model(), policy) as model:
        cached, uncached = generate(model, case.batch), generate(model, case.batch, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    assert gap(torch.stack(cached.logits), torch.stack(uncached.logits)) < TOLERANCE
