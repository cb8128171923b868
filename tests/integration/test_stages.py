"""Every cut of a run has maps of its own: what it left, and how it ranked what it was offered."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES
from tests.support.mechanism import Case, forward
from vlmopt import pruning


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_every_stage_shows_what_it_left(name):
    case = Case(FAMILIES[name], "progressive", "keep", "ragged")
    with case.optimized() as model:
        forward(model, case.batch)
        report = vlmopt.report(model)
    for row, sample in enumerate(report.samples):
        stages = report.stages(row)
        facts = [(s.layer, s.method, s.before, s.after) for s in stages]
        assert facts == [tuple(s[k] for k in ("layer", "method", "before", "after")) for s in sample["stages"]]
        assert [sum(int(m.kept.sum()) for m in s.maps) for s in stages] == [s.after for s in stages]
        for earlier, later in pairwise(stages):
            for before, after in zip(earlier.maps, later.maps, strict=True):
                assert bool((before.kept | ~after.kept).all())  # nobody comes back
        for last, whole in zip(stages[-1].maps if stages else [], report.maps(row), strict=True):
            assert torch.equal(last.kept, whole.kept)
        assert all(m.scores is None for s in stages for m in s.maps)  # this selector does not rank


def test_scores_are_those_of_the_cut_alone():
    case = Case(FAMILIES["qwen2_5_vl"], "mid")
    policy = [
        pruning.FastV(keep_ratio=0.5, layer=2),
        pruning.Uniform(keep_ratio=0.4, layer=3),
        pruning.FastV(keep_ratio=0.2, layer=4),
    ]
    with vlmopt.optimized(case.model(), policy) as model:
        forward(model, case.batch)
        report = vlmopt.report(model)
    first, second, third = report.stages()
    total = report.samples[0]["visual_tokens"]
    for stage, ranked in ((first, total), (third, second.after)):
        scores, kept = (torch.cat([getattr(m, key) for m in stage.maps]) for key in ("scores", "kept"))
        assert int((~scores.isnan()).sum()) == stage.before == ranked
        assert scores[kept].min() >= scores[~kept & ~scores.isnan()].max()
    assert all(m.scores is None for m in second.maps)
    assert torch.equal(third.maps[0].scores.nan_to_num(-1), report.maps()[0].scores.nan_to_num(-1))
    assert not torch.equal(first.maps[0].scores, third.maps[0].scores)


def test_without_pruning_there_are_none_and_wrong_rows_are_refused():
    case = Case(FAMILIES["llava"], "pre")
    with vlmopt.optimized(case.model(), vlmopt.Policy()) as model:
        forward(model, case.batch)
        report = vlmopt.report(model)
    assert report.stages() == []
    with pytest.raises(ValueError, match="sample=3"):
        report.stages(3)
