"""Any policy is refused before a model changes, or runs and keeps every promise."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

import vlmopt
from tests.support.families import FAMILIES, Batch, Image
from tests.support.mechanism import expected_lengths, forward, gap, generate, stored_lengths
from tests.support.random_policies import policy
from tests.support.snapshot import differences, snapshot
from vlmopt.policy import Policy

pytestmark = [pytest.mark.usefixtures("untrained_scorer"), pytest.mark.filterwarnings("ignore::UserWarning")]
HOSTS = ("llava", "qwen2_5_vl", "gemma3")
ROWS: list[list[Any]] = [[5, Image(0), 7], [3, Image(1), 4, Image(2), 6]]
TOLERANCE = 1e-3
NEW = 3


@functools.cache
def host(name: str) -> tuple[Any, Batch, torch.Tensor, dict[str, Any]]:
    """A model of its own, a prompt, dense logits, and everything that hangs on the model."""
    model, batch = copy.deepcopy(FAMILIES[name].build()), FAMILIES[name].inputs(ROWS)
    return model, batch, forward(model, batch), snapshot(model)


@given(data=policy(), name=st.sampled_from(HOSTS))
def test_refused_or_right(data, name):
    model, batch, dense, before = host(name)
    try:
        found = Policy.load(data)
        assert Policy.load(found.to_json()) == found
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cautions about strong settings
            vlmopt.optimize(model, found)
    except (ValueError, TypeError):
        event("refused")
    else:
        event("ran")
        try:
            check(model, batch, found, dense)
        finally:
            vlmopt.restore(model)
    assert differences(before, snapshot(model)) == []
    assert torch.equal(forward(model, batch), dense)


def check(model: Any, batch: Batch, found: Policy, dense: torch.Tensor) -> None:
    logits = forward(model, batch)
    assert logits.shape == dense.shape
    assert logits[batch.real].isfinite().all()
    cached = generate(model, batch, max_new_tokens=NEW)
    report = vlmopt.report(model)
    texts = (batch.real & ~batch.visual).sum(1).tolist()
    for text, total, sample in zip(texts, batch.total.tolist(), report.samples, strict=True):
        assert sample["visual_tokens"] == total
        assert sample["prompt_tokens"] - sample["visual_tokens"] == text
        assert 0 < sample["visual_tokens_kept"] <= total
    steps = cached.sequences.shape[1] - batch.ids.shape[1]
    lengths = expected_lengths(cached.past_key_values, report.key_lengths, steps)
    assert stored_lengths(cached.past_key_values) == lengths
    if found.prefill is None and steps == NEW:  # a sparse prefill computes uncached steps sparsely, too
        uncached = generate(model, batch, max_new_tokens=NEW, use_cache=False)
        assert gap(torch.stack(cached.logits), torch.stack(uncached.logits)) < TOLERANCE
