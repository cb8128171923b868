"""Every bundled method has something to show in the demo's tabs, or is told why not and what to choose."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vlmopt
from tests.support.corrections import TABLE
from tests.support.selectors import SELECTORS
from tests.support.tab_page import TABS, charts, fine, images, loaded, page, run_of, said
from tests.support.untrained import Untrained, marker
from tests.support.visual import scorer
from vlmopt import scorers
from vlmopt.checks import model_facts
from vlmopt.decoding import registry as steps
from vlmopt.kernels.patterns import registry as patterns
from vlmopt.kv import registry as evictions
from vlmopt.methods import methods
from vlmopt.prefill import SparsePrefill
from vlmopt.runtime.structure import structure_of

WIDTH = 192  # of the bundled model
SLOW = {"zeroth_order", "first_pass"}  # their easy setting takes seconds; the hard one is small


class Fits(Untrained):
    """A scorer that fits the bundled model."""

    def check(self, source: str, model: Any, marker: bool) -> None:
        assert model["hidden_size"] == WIDTH


def policies() -> dict[str, Any]:
    """Every bundled method by name, as something that gives a policy."""
    found: dict[str, Any] = {}
    for name, row in SELECTORS.items():
        found[name] = lambda row=row, name=name: vlmopt.Policy(prune=[row[name in SLOW]])
    for name, row in TABLE.items():
        found[name] = lambda row=row: vlmopt.Policy(
            attention=[row[0](model_facts(loaded().model, structure_of(loaded().model)))]
        )
    for name, cls in patterns.items():
        least = 128 if name == "psa" else 1  # psa needs a whole block of 128 keys, and stays dense here
        found[name] = lambda cls=cls, least=least: vlmopt.Policy(
            prefill=SparsePrefill(pattern=cls(), min_len=least, max_work=2.0)
        )
    for name, eviction in evictions.items():
        found[name] = lambda eviction=eviction: vlmopt.Policy(kv=eviction(keep_ratio=0.5))
    given = {"local_contrast": {"mask": torch.ones_like}, "yes_bias": {"ids": (3,)}}
    for name, step in steps.items():
        found[name] = lambda step=step, name=name: vlmopt.Policy(decoding=[step(**given.get(name, {}))])
    return found


POLICIES = policies()


def test_no_bundled_method_is_left_out():
    own = {name for name, cls in methods().items() if not cls.__module__.startswith("tests")}
    assert own == set(POLICIES)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_method_has_its_tabs(name, monkeypatch):
    monkeypatch.setattr(scorers, "load", lambda source, **options: Fits(scorer(WIDTH), marker(WIDTH), {}))
    run = run_of(POLICIES[name]())
    test = fine(page(run, *TABS))
    text = said(test)
    assert charts(test) >= 2  # layers and ledger at least
    stages = run.optimized.report.stages()
    if stages:
        ranked = [stage for stage in stages if any(m.scores is not None for m in stage.maps)]
        assert images(test) >= len(stages) + len(ranked)
        assert all(f"Before layer {stage.layer}" in text for stage in stages)
        assert ("does not rank" in text) == (len(ranked) < len(stages))
    else:
        assert "Nothing was pruned in this run" in text
        assert "This policy prunes nothing" in text
    if run.optimized.report.prefill:
        assert "of the cells" in text
