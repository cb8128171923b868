"""Attention sinks are left out of rankings where a selector is told so, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, Image
from tests.support.massive import FAMILY, SINK, Plan, planted, prompt
from tests.support.visual import visual
from vlmopt.attention_fix.secondary_sinks import like_first
from vlmopt.pruning import FastV, Random, Sinks, Uniform

FIRST = 6  # place of the first visual token of `prompt`


def kept(model, policy, inputs):
    with vlmopt.optimized(model, policy):
        model(**inputs)
        report = vlmopt.report(model)
    return [report.maps(row)[0].kept.nonzero()[:, 0].tolist() for row in range(len(report.samples))], report


def test_a_planted_sink_draws_attention_and_is_left_out() -> None:
    model, place = planted(), SINK - FIRST
    (with_sink,), _ = kept(model, FastV(keep_ratio=0.25, layer=3), prompt(0)())
    (without,), report = kept(model, FastV(keep_ratio=0.25, layer=3, sinks="leave_out"), prompt(0)())
    assert place in with_sink
    assert place not in without
    assert len(without) == len(with_sink) == 4
    assert report.samples[0]["stages"][0]["sinks"] == 1


@pytest.mark.parametrize("layer", [1, 5])  # before it is written, and behind where it is taken away
def test_where_nothing_is_massive_nothing_is_a_sink(layer: int) -> None:
    model = planted()
    plain, _ = kept(model, FastV(keep_ratio=0.25, layer=layer), prompt(0)())
    told, report = kept(model, FastV(keep_ratio=0.25, layer=layer, sinks="leave_out"), prompt(0)())
    assert told == plain
    assert report.samples[0]["stages"][0]["sinks"] == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_in_a_padded_batch_as_alone(side: str) -> None:
    rows = [[5, Image(0), 7], [5, Image(0), 12]]
    model = planted(Plan(tokens={0: (3, 17), SINK: (3, 17)}))
    policy = FastV(keep_ratio=0.25, layer=3, sinks="leave_out")
    both = FAMILY.inputs(rows, seed=1, padding_side=side)
    (longer, *_), _ = kept(model, policy, {k: v[1:] for k, v in both().items()})
    found, report = kept(model, policy, both())
    assert found[1] == longer
    assert report.samples[1]["stages"][0]["sinks"] == 1


def test_sinks_stay_where_nothing_else_is_left() -> None:
    tokens = visual([(1, 4, 5)], {Sinks()}, generator=torch.Generator().manual_seed(0))
    sinks = tokens.signals[Sinks()]
    assert 0 < int(sinks.sum()) < 20
    rest = 20 - int(sinks.sum())
    for k in (1, rest - 1, rest, rest + 1, 20):
        found = Random(keep_tokens=k, layer=2, sinks="leave_out").select(tokens)
        assert len(found.keep) == k
        assert int(sinks[found.keep].sum()) == max(k - rest, 0)
        assert found.stats["sinks"] == int(sinks.sum())


def test_a_cut_before_the_language_model_is_refused() -> None:
    model = planted()
    with pytest.raises(ValueError, match="no layer has run yet"):
        vlmopt.optimize(model, Uniform(keep_ratio=0.5, sinks="leave_out"))
    assert not hasattr(model, "_vlmopt")
    with pytest.raises(ValueError, match="sinks must be one of keep, leave_out"):
        Uniform(keep_ratio=0.5, layer=2, sinks="drop")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "internvl"])
def test_models_without_sinks_choose_as_before(family: str) -> None:
    row = FAMILIES[family]
    batch = row.inputs([[3, Image(0), 5], [7, Image(0), 6]])
    plain, _ = kept(row.build(), Uniform(keep_ratio=0.5, layer=2), batch())
    told, report = kept(row.build(), Uniform(keep_ratio=0.5, layer=2, sinks="leave_out"), batch())
    assert told == plain
    assert [sample["stages"][0]["sinks"] for sample in report.samples] == [0, 0]


def test_likeness_counts_beside_a_massive_first_token_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(12, 64, generator=rng)
    hidden[0] *= 50
    hidden[7] = -0.2 * hidden[0] + 0.1 * hidden[7]
    valid = torch.ones(12, dtype=torch.bool)
    assert like_first(hidden, valid).nonzero()[:, 0].tolist() == [7]
    assert like_first(1e-3 * hidden, valid).nonzero()[:, 0].tolist() == [7]
    alike = torch.ones(12, 64) + 0.1 * torch.randn(12, 64, generator=rng)
    assert not like_first(alike, valid).any()
    padded = torch.cat([torch.randn(3, 64, generator=rng), hidden])
    there = torch.tensor([False] * 3 + [True] * 12)
    assert like_first(padded, there).nonzero()[:, 0].tolist() == [10]
    there[10] = False
    assert not like_first(padded, there).any()
