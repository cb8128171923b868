"""Any policy is refused before a model changes, or runs and keeps every promise."""

from __future__ import annotations

import copy
import functools
import warnings
from collections import Counter
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vlmopt
from tests.fuzz.conftest import SHARD
from tests.support.evicted import gone
from tests.support.families import FAMILIES, Batch, Image
from tests.support.mechanism import expected_lengths, forward, gap, generate, stored_lengths
from tests.support.random_policies import policy
from tests.support.replay import ending_in_images
from tests.support.snapshot import differences, snapshot
from vlmopt.policy import Policy

pytestmark = [pytest.mark.usefixtures("untrained_scorer"), pytest.mark.filterwarnings("ignore::UserWarning")]
HOSTS = st.sampled_from(["llava", "qwen2_5_vl", "gemma3"])
PROMPTS: dict[str, tuple[list[list[Any]], tuple[int, ...]]] = {  # rows, and those that end with their image
    "text last": ([[5, Image(0), 7], [3, Image(1), 4, Image(2), 6]], ()),
    "image last": ([[5, Image(0)], [3, Image(1), 4, Image(2)]], (0, 1)),
    "image alone": ([[Image(0)]], (0,)),
    "one of each": ([[Image(1)], [6], [4, Image(0), 5]], (0,)),
}
NO_QUESTION = "no text behind the last visual token"
TOLERANCE = 1e-3
NEW = 2


@functools.cache
def host(name: str) -> tuple[Any, dict[str, Any]]:
    """A model of its own, and everything that hangs on it."""
    model = copy.deepcopy(FAMILIES[name].build())
    forward(model, batch_of(name, "text last"))
    return model, snapshot(model)


@functools.cache
def batch_of(name: str, prompt: str) -> Batch:
    return ending_in_images(FAMILIES[name], *PROMPTS[prompt])


@functools.cache
def dense_logits(name: str, prompt: str) -> torch.Tensor:
    return forward(host(name)[0], batch_of(name, prompt))


@functools.cache
def agrees(name: str, prompt: str) -> bool:
    """Whether the unwrapped model answers the same with and without a cache (Gemma3 takes what follows an image for
    more of it)."""
    with_cache, without = (
        generate(host(name)[0], batch_of(name, prompt), max_new_tokens=NEW, use_cache=use).logits
        for use in (True, False)
    )
    return gap(torch.stack(with_cache), torch.stack(without)) < TOLERANCE


def test_refused_or_right(shard):
    ends: Counter[str] = Counter()

    @hypothesis.seed(shard)
    @settings(max_examples=min(SHARD, settings.default.max_examples))
    @given(HOSTS.flatmap(lambda name: st.tuples(st.just(name), policy(name))), st.sampled_from(sorted(PROMPTS)))
    def refused_or_right(drawn: tuple[str, Any], prompt: str) -> None:
        name, data = drawn
        dense, (model, before) = dense_logits(name, prompt), host(name)
        twice = agrees(name, prompt)
        try:
            found = Policy.load(data)
            assert Policy.load(found.to_json()) == found
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # cautions about strong settings
                vlmopt.optimize(model, found)
        except (ValueError, TypeError):
            ends["refused"] += 1
        else:
            try:
                check(model, batch_of(name, prompt), found, dense, twice)
                ends["ran"] += 1
            except ValueError as error:
                if NO_QUESTION not in str(error) or prompt == "text last":
                    raise
                ends["needs a question"] += 1
            finally:
                vlmopt.restore(model)
            assert torch.equal(forward(model, batch_of(name, prompt)), dense)
        assert differences(before, snapshot(model)) == []

    refused_or_right()
    print(dict(ends))  # `make fuzz` shows it


def check(model: Any, batch: Batch, found: Policy, dense: torch.Tensor, twice: bool) -> None:
    logits = forward(model, batch)
    assert logits.shape == dense.shape
    assert logits[batch.real].isfinite().all()
    cached = generate(model, batch, max_new_tokens=NEW, output_scores=True)
    for scores in cached.scores:  # what decoding made of the logits
        assert not scores.isnan().any()
        assert scores.amax(1).isfinite().all()
    assert bool((cached.logits[0].abs().amax(1) > 0).all()), "the row that predicts was dropped"
    assert gap(logits[:, -1], cached.logits[0]) < TOLERANCE
    report = vlmopt.report(model)
    texts = (batch.real & ~batch.visual).sum(1).tolist()
    for text, total, sample in zip(texts, batch.total.tolist(), report.samples, strict=True):
        assert sample["visual_tokens"] == total
        assert sample["prompt_tokens"] - sample["visual_tokens"] == text
        assert min(total, 1) <= sample["visual_tokens_kept"] <= total
    steps = cached.sequences.shape[1] - batch.ids.shape[1]
    lengths = expected_lengths(cached.past_key_values, report.key_lengths, steps)
    assert stored_lengths(cached.past_key_values) == lengths
    if found.eviction is not None:
        check_evicted(batch, found, report, cached.past_key_values)
    elif twice and found.prefill is None and found.reading is None and steps == NEW:  # steps without a cache: a sparse
        # prefill computes them sparsely, too, and sparse reading does not
        uncached = generate(model, batch, max_new_tokens=NEW, use_cache=False)
        assert gap(torch.stack(cached.logits), torch.stack(uncached.logits)) < TOLERANCE


def check_evicted(batch: Batch, found: Policy, report: vlmopt.Report, cache: Any) -> None:
    for layer in report.kv:
        assert layer["slots_after"] <= layer["slots_before"]
        for kept, competing in zip(layer["kept"], layer["competing"], strict=True):
            assert min(competing, 1) <= kept <= competing
    assert report.kv or any(skipped["what"] == "kv eviction" for skipped in report.skipped)
    if hasattr(cache, "_vlmopt") and found.kv.protect == "text":
        text = (batch.real & ~batch.visual)[:, None]
        for left in gone(cache, batch.ids.shape[1])[1].values():
            assert not bool((left & text).any())
