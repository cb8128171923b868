"""What a sweep leaves: marks that fit the task, a table and a drawing that stand alone."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import pytest

from vlmopt.analysis.sweep import SweepPoint
from vlmopt.apps.page import curves, marks
from vlmopt.apps.page.marks import mark_of
from vlmopt.evaluation.report.svg import svg
from vlmopt.metrics.clicks import Point

SVG = "{http://www.w3.org/2000/svg}"
POINTS = [
    SweepPoint("dense", 1.0, 1.0, 1.0, (1,), 1.0, 60.0, 90.0, 3),
    SweepPoint("fastv, layer 2", 0.1, 0.1, 0.4, (1,), 0.5, 30.0, 60.0, 3),
    SweepPoint("random", 0.1, 0.1, 0.4, (2,), 0.0, 31.0, 61.0, 3),
    SweepPoint("fastv, layer 2", 0.5, 0.5, 0.6, (1,), 1.0, 40.0, 70.0, 3),
    SweepPoint("random", 0.5, 0.5, 0.6, (2,), 0.5, 41.0, 71.0, 2),
]
ANSWERS = ["yes", "=yes, <b>", "no", "yes", "no"]


def said(ids: Sequence[int]) -> str:
    return {1: "four", 2: "fore", 3: "Four.", 4: "seven"}[ids[0]]


def click(ids: Sequence[int]) -> Point | None:
    return {1: (10.0, 10.0), 2: (11.0, 10.0), 3: (90.0, 90.0)}.get(ids[0])


def test_clicks_are_marked_by_pixels() -> None:
    mark = mark_of("click", (100, 100), click((1,)), click, said)
    assert mark.name == "pixels between the clicks"
    assert [round(mark.agree((n,), (1,)), 2) for n in (1, 2, 3, 4)] == [1, 0.86, 0, 0]
    assert mark_of("click", (100, 100), None, click, said).name == "tokens in order"


def test_answers_are_marked_by_their_letters_or_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rapidfuzz")
    mark = mark_of("answer", (1, 1), None, click, said)
    assert (mark.name, mark.agree((3,), (1,)), mark.agree((4,), (1,))) == ("ANLS", pytest.approx(0.8), 0)
    monkeypatch.setattr(marks.importlib.util, "find_spec", lambda name: None)
    mark = mark_of("answer", (1, 1), None, click, said)
    assert (mark.name, mark.agree((3,), (1,)), mark.agree((2,), (1,))) == ("exact match", 1, 0)
    assert mark_of("describe", (1, 1), None, click, said).name == "tokens in order"


def test_the_table_has_a_line_per_point() -> None:
    rows = list(csv.DictReader(io.StringIO(curves.table(POINTS, ANSWERS, [0.0, 1.5, None, 0.0, 2.0], "ANLS"))))
    assert [row["method"] for row in rows] == [point.name for point in POINTS]
    assert [row["answer"] for row in rows] == ANSWERS
    assert (rows[1]["kept_share"], rows[1]["agreement"], rows[1]["click_off_px"]) == ("0.1", "0.5", "1.50")
    assert (rows[2]["click_off_px"], rows[4]["runs"], rows[0]["marked_by"]) == ("", "2", "ANLS")


def test_the_drawing_stands_alone_and_shows_every_point() -> None:
    """A line a method; controls are dashed; texts of strangers are texts."""
    title = "<script>alert(1)</script>"
    root = ElementTree.fromstring(svg(curves.drawing(POINTS, title)))
    assert root.tag == f"{SVG}svg"
    lines = [line for line in root.iter(f"{SVG}polyline") if float(line.get("stroke-width", 0)) > 1]
    assert [line.get("stroke-dasharray") for line in lines] == [None, "5 5"]
    titles = [title.text for title in root.iter(f"{SVG}title") if title.text]
    assert titles[0] == title
    assert titles[1] == "fastv, layer 2: 10% kept, agreement 50%, 30 ms"
    assert len(titles) == 1 + 4
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {title, "fastv, layer 2", "random", "visual tokens kept, % of all"} <= set(texts)
