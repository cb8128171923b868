"""A sweep asks the same prompt at other budgets, counts what it kept, and can be stopped between two runs."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

import vlmopt
from tests.support.families import FAMILIES, GREEDY, Image
from vlmopt.analysis.click import click_agreement
from vlmopt.analysis.sweep import SweepPoint, agreement, contenders, front, sweep, with_keep_ratio
from vlmopt.api import session_of
from vlmopt.pruning import Debias, FastV, PyramidDrop, Random, Uniform, ZipVL

METHODS = {"fastv": FastV(keep_ratio=0.25, layer=2), "random": Random(keep_ratio=0.25)}


@pytest.fixture(scope="module")
def asked():
    family = FAMILIES["qwen2_5_vl"]
    return copy.deepcopy(family.build()), family.inputs([[5, Image(2), 7]])()


def point(name: str, kept: float, agreed: float) -> SweepPoint:
    return SweepPoint(name, kept, kept, kept, (1,), agreed, 1.0, 2.0)


def test_points_count_what_was_kept(asked):
    model, inputs = asked
    told: list[tuple[int, int, str]] = []
    points = sweep(model, inputs, METHODS, (0.5, 0.25, 1.0), max_new_tokens=3, progress=lambda *step: told.append(step))
    assert [(p.name, p.keep_ratio) for p in points] == [
        ("dense", 1.0), *((name, ratio) for ratio in (0.25, 0.5, 1.0) for name in ("fastv", "random"))]  # fmt: skip
    assert [p.kept_share for p in points] == pytest.approx([1, 0.25, 0.25, 0.5, 0.5, 1, 1])
    assert points[1].layer_share == pytest.approx((2 + 4 * 0.25) / 6)  # two layers see everything
    assert points[2].layer_share == pytest.approx(0.25)
    dense = model.generate(**inputs, **GREEDY, max_new_tokens=3)[0, inputs["input_ids"].shape[1] :].tolist()
    assert list(points[0].ids) == dense
    assert all(p.agreement == agreement(p.ids, dense) for p in points)
    assert [p.agreement for p in points[-2:]] == [1, 1]  # ratio 1 changes nothing
    assert all(0 < p.ttft_ms <= p.total_ms for p in points)
    assert [step[:2] for step in told] == [(done, 7) for done in range(7)]
    assert session_of(model) is None


def test_it_stops_and_keeps_what_was_whole(asked):
    model, inputs = asked
    asks: list[int] = []

    def stop() -> bool:  # asked before and after each run: the third run is cut short
        asks.append(1)
        return len(asks) > 5

    points = sweep(model, inputs, METHODS, (0.25, 0.5), max_new_tokens=2, stop=stop)
    assert [p.name for p in points] == ["dense", "fastv"]
    assert sweep(model, inputs, METHODS, (0.5,), stop=lambda: True) == []


def test_rounds_go_through_all_points_in_turn(asked):
    """A machine that slows down slows every point; what is stopped in a later round keeps the earlier ones."""
    model, inputs = asked
    told: list[tuple[int, int, str]] = []
    points = sweep(
        model, inputs, METHODS, (0.5,), max_new_tokens=2, repeats=3, progress=lambda *step: told.append(step)
    )
    assert told == [(n, 9, ("dense", "fastv, keep ratio 0.5", "random, keep ratio 0.5")[n % 3]) for n in range(9)]
    assert [p.repeats for p in points] == [3, 3, 3]
    stopped = sweep(
        model, inputs, METHODS, (0.5,), max_new_tokens=2, repeats=3, progress=lambda *step: told.append(step),
        stop=lambda: told[-1][0] == 4,
    )  # fmt: skip
    assert [p.repeats for p in stopped] == [2, 1, 1]
    assert [p.ids for p in stopped] == [p.ids for p in points]


def test_other_budgets_are_the_methods_own():
    assert with_keep_ratio(Random(keep_tokens=7, layer=3), 0.5) == Random(keep_ratio=0.5, layer=3)
    debiased = with_keep_ratio(Debias(FastV(keep_ratio=0.5, layer=4), fit="per_sample"), 0.1)
    assert debiased == Debias(FastV(keep_ratio=0.1, layer=4), fit="per_sample")
    cuts = with_keep_ratio(PyramidDrop(ratios=(0.5, 0.3, 0.1), layers=(1, 2, 4)), 0.125)
    assert [stage.keep_ratio for stage in cuts.stages] == pytest.approx([0.5, 0.25, 0.125])
    assert with_keep_ratio(ZipVL(tau=0.9), 0.5) == ZipVL(tau=0.9, keep_ratio=0.5)
    with pytest.raises(ValueError, match=r"1\.5"):
        with_keep_ratio(Uniform(keep_ratio=0.5), 1.5)


def test_agreement_counts_matches_in_order():
    assert agreement((1, 2, 3, 4), (1, 2, 3, 4)) == 1
    assert agreement((1, 2, 9, 4), (1, 2, 3, 4)) == pytest.approx(0.75)
    assert agreement((1, 2, 3), (9, 1, 2, 3)) == pytest.approx(6 / 7)
    assert agreement((5,), (6,)) == 0
    assert agreement((), ()) == 1


def test_clicks_agree_by_pixels_not_by_digits(asked):
    """ "(110, 20)" and "(0, 20)" share most of their tokens and are 110 pixels apart."""
    size = (448, 448)
    assert click_agreement((100, 20), (100, 20), size) == 1
    assert 0 < click_agreement((110, 20), (100, 20), size) < 1
    assert click_agreement((210, 20), (100, 20), size) == 0
    model, inputs = asked
    points = sweep(model, inputs, METHODS, (0.25,), max_new_tokens=2, agree=lambda ids, dense: 0.5)
    assert [point.agreement for point in points] == [0.5] * 3


def test_the_front_holds_what_nothing_beats():
    good, few, worse, same = point("a", 0.5, 1.0), point("b", 0.1, 0.4), point("c", 0.5, 0.8), point("d", 0.5, 1.0)
    assert front([good, few, worse, same]) == [good, few, same]
    assert front([replace(good, agreement=0.4), few]) == [few]


def test_the_controls_stand_beside_the_methods_at_their_layer():
    assert contenders(vlmopt.presets()["attention-25"]) == {
        "fastv, layer 2": FastV(keep_ratio=0.25, layer=2),
        "random": Random(keep_ratio=0.5, layer=2),
        "uniform": Uniform(keep_ratio=0.5, layer=2),
    }
    assert list(contenders(vlmopt.presets()["uniform-25"])) == ["uniform, layer 0", "random"]
    assert list(contenders(vlmopt.Policy())) == ["random", "uniform"]


def test_nothing_to_sweep_is_refused(asked):
    model, inputs = asked
    for methods, ratios, repeats in (({}, (0.5,), 1), (METHODS, (), 1), (METHODS, (0.5,), 0)):
        with pytest.raises(ValueError, match="a sweep needs"):
            sweep(model, inputs, methods, ratios, repeats=repeats)
    with pytest.raises(ValueError, match="keep_ratio"):
        sweep(model, inputs, METHODS, (0.0,))
