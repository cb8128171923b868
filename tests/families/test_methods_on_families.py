"""The table of selectors crossed with the families: promises that hold for every method on every model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, Batch, Family, Image
from tests.support.selectors import SETTINGS, with_ratio, works_on
from vlmopt.families import families
from vlmopt.pruning import Selector

ROWS: list[list[Any]] = [[5, Image(0), 7], [3, Image(1), 4, Image(2), 6]]
PADDED: list[list[Any]] = [[5, Image(0), 7], [60]]  # the text-only row is the longer one
pytestmark = pytest.mark.usefixtures("untrained_scorer")
PROMISED = [family for family in FAMILIES.values() if not family.extra]


def cells() -> list[Any]:
    """Every setting on every family that can take it; the refusal of `resize` elsewhere has a test of its own."""
    return [
        pytest.param(family, method, id=f"{family.name}-{name}")
        for family in PROMISED
        for name, method in SETTINGS.items()
        if works_on(families()[family.name], method)
    ]


@torch.no_grad()
def run(model: Any, batch: Batch) -> tuple[torch.Tensor, vlmopt.Report]:
    logits = model(**batch()).logits
    return logits, vlmopt.report(model)


@pytest.mark.parametrize(("family", "method"), cells())
def test_a_method_keeps_its_promises(family: Family, method: Selector):
    model, batch = copy.deepcopy(family.build("sdpa")), family.inputs(ROWS)
    with torch.no_grad():
        dense = model(**batch()).logits
    vlmopt.optimize(model, method)
    logits, report = run(model, batch)

    assert logits.shape == dense.shape
    assert logits[batch.real].isfinite().all()
    for row, sample in enumerate(report.samples):
        left = sample["visual_tokens"]
        assert left == int(batch.total[row])
        for cut, stage in zip(method.stages, sample["stages"], strict=True):
            budget = cut.budget(sample["visual_tokens"])
            assert stage["layer"] == cut.layer
            assert stage["before"] == left
            assert stage["requested"] == budget
            if cut.adaptive:  # at most the budget, and no image vanishes
                assert 0 < stage["after"] <= max(budget, len(sample["items"]))
            else:
                assert stage["after"] == min(budget, left)
            assert stage["markers"] == 0 or cut.numbering == "pospad"
            left = stage["after"]
        assert sample["visual_tokens_kept"] == left

    assert torch.equal(run(model, batch)[0], logits)
    neutral = with_ratio(method, 1.0)
    if neutral.is_identity:  # adaptive methods have no ratio that switches them off
        vlmopt.optimize(model, neutral)
        assert torch.equal(run(model, batch)[0], dense)
    vlmopt.restore(model)
    with torch.no_grad():
        assert torch.equal(model(**batch()).logits, dense)


@pytest.mark.parametrize(("family", "method"), cells())
def test_a_sample_in_a_batch_is_the_sample_alone(family: Family, method: Selector):
    batch = family.inputs(PADDED)
    real = batch.real[0]
    assert not real.all()
    alone = Batch({name: first_row(value, real) for name, value in batch.inputs.items()}, batch.span[:1, real])
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), method) as model:
        together, report = run(model, batch)
        single, expected = run(model, alone)
    assert [m.kept.tolist() for m in report.maps(0)] == [m.kept.tolist() for m in expected.maps(0)]
    assert float((together[0, real] - single[0]).abs().max()) < 1e-4


def first_row(value: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The first sample's share of an input: tokens without padding; pixels come from that sample alone anyway."""
    if value.shape[:2] == (len(PADDED), len(real)):
        return value[:1, real]
    return value[:1] if value.shape[0] == len(PADDED) else value
