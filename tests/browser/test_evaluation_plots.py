"""Plots of a report: every policy at its place, the front, names that stay readable."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image

from tests.support.report_runs import POLICIES, whole
from vlmopt.evaluation.report import write_report
from vlmopt.evaluation.report.draw import Box, Dot, Text, png, text_width
from vlmopt.evaluation.report.facts import AXES, Axis, Facts, Figure, Place
from vlmopt.evaluation.report.labels import Named, Rect, labels
from vlmopt.evaluation.report.palette import LIGHT
from vlmopt.evaluation.report.plane import ticks
from vlmopt.evaluation.report.plots import DRAWING, Point, front, stages, tradeoff


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = whole(tmp_path_factory.mktemp("report") / "run")
    write_report(directory)
    return directory


@pytest.fixture(scope="module")
def facts(run: Path) -> Facts:
    return Facts.load(run)


def point(name: str, cost: float, worth: float) -> Point:
    return Point(name, Place(cost, cost, cost), Figure(worth, worth - 5, worth + 5, 9))


class Alike:
    """The policies of a run, all at one place."""

    def __init__(self, facts: Facts) -> None:
        self.policies, self.figure, self.style = facts.policies, facts.figure, facts.style

    def place(self, policy: str, axis: Axis) -> Place:
        return Place(25.0, 25.0, 25.0)


def test_the_front_has_what_nothing_beats() -> None:
    points = [point("dear", 100, 90), point("mid", 50, 85), point("beaten", 60, 80), point("cheap", 10, 60)]
    twins = [point("twin", 50, 85), point("worse twin", 50, 84)]
    assert [p.policy for p in front([*points, *twins], 1)] == ["cheap", "mid", "twin", "dear"]
    assert [p.policy for p in front(points, -1)] == ["cheap"]
    assert front([], 1) == []


def test_plots_show_every_policy_at_its_place(facts: Facts) -> None:
    metric = facts.headlines[0]
    drawn = tradeoff(facts, metric, AXES[0])
    dots = [mark for mark in drawn.marks if isinstance(mark, Dot)]
    assert [dot.tip.split(":")[0] for dot in dots] == list(POLICIES)
    assert dots[0].x > dots[1].x > dots[2].x
    assert dots[0].y < dots[1].y < dots[2].y
    for dot, policy in zip(dots, POLICIES, strict=True):
        figure = facts.figure(policy, metric)
        (x, top, _, bottom), *_ = dot.bars
        assert x == dot.x
        above = (figure.high - figure.value) / (figure.high - figure.low)
        assert (dot.y - top) / (bottom - top) == pytest.approx(above)
    assert "Pareto front: a|b <i>, half, dense" in drawn.told
    assert all(0 <= m.x <= drawn.width for m in drawn.marks if isinstance(m, Text))


def test_images_have_ink_where_the_points_are(run: Path, facts: Facts) -> None:
    metric = facts.headlines[0]
    drawn = tradeoff(facts, metric, AXES[0], DRAWING)
    image = Image.open(run / "plots" / "accuracy-versus-tokens.png")
    assert image.size == (drawn.width * 2, drawn.height * 2)
    for dot in (mark for mark in drawn.marks if isinstance(mark, Dot)):
        ink = tuple(int(LIGHT[dot.ink][i : i + 2], 16) for i in (1, 3, 5))
        assert image.getpixel((round(dot.x * 2) - 3, round(dot.y * 2))) == pytest.approx(ink, abs=2)
    assert len(png(drawn)) < 100_000


def test_stages_are_as_long_as_they_take(facts: Facts) -> None:
    drawn = stages(facts, whole=False, width=208.0)
    pieces = [mark for mark in drawn.marks if isinstance(mark, Box) and mark.tip]
    bars = [(piece.tip.split(" ms")[0], round(piece.width, 1)) for piece in pieces]
    dense = [("dense: vision tower 20.0", 38.8), ("dense: prefill 80.0", 155.3), ("dense: other 3.0", 5.8)]
    assert bars[:3] == dense
    assert ("half: scoring 3.0", 5.8) in bars
    assert not any("decode" in name for name, _ in bars)
    assert "dense: 103 ms" in drawn.told
    assert any("decode 10.0" in mark.tip for mark in stages(facts, whole=True).marks if isinstance(mark, Box))


def test_names_do_not_cover_one_another() -> None:
    frame = Rect(0, 0, 500, 300)
    points = [Named(240 + 12 * i, 150 + 9 * (i % 3), f"some-policy-{i}", "p1") for i in range(8)]
    texts = [mark for mark in labels(points, frame) if isinstance(mark, Text)]
    boxes = [Rect(t.x, t.y - 12, t.x + text_width(t.text, 12), t.y + 2) for t in texts]
    assert len(texts) == 8
    assert all(first.shared(second) == 0 for first, second in combinations(boxes, 2))
    assert all(box.shared(frame) == pytest.approx(box.area) for box in boxes)


def test_points_of_one_cost_stand_at_it(facts: Facts) -> None:
    """Three policies of one budget: nobody is moved aside."""
    shown = Alike(facts)
    drawn = tradeoff(shown, facts.headlines[0], AXES[0])
    dots = [mark for mark in drawn.marks if isinstance(mark, Dot)]
    assert len({dot.x for dot in dots}) == 1
    assert len(dots) == len(POLICIES)


def test_ticks_are_round() -> None:
    assert ticks(0, 100, 5) == [0, 20, 40, 60, 80, 100]
    assert ticks(0.31, 0.89, 5) == pytest.approx([0.4, 0.6, 0.8])
    assert ticks(980, 1020, 4) == [980, 990, 1000, 1010, 1020]
    assert ticks(1647, 2487, 4) == [1800, 2000, 2200, 2400]  # 500 apart there is but one
