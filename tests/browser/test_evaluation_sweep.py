"""The figure of a sweep, in a browser and in every form for a paper."""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.report_runs import swept
from vlmopt.evaluation.report import write_report
from vlmopt.evaluation.report.curves import STEP, costs, curves
from vlmopt.evaluation.report.draw import Dot, Line, Scene, Text
from vlmopt.evaluation.report.facts import AXES, Facts
from vlmopt.evaluation.report.latex import tex
from vlmopt.evaluation.report.pdf import pdf

METHODS, CONTROLS = ("fastv:layer=2", "div_prune"), ("random", "uniform")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = swept(tmp_path_factory.mktemp("sweep") / "run")
    write_report(directory)
    return directory


@pytest.fixture(scope="module")
def facts(run: Path) -> Facts:
    return Facts.load(run)


def lines_of(drawn: Scene) -> list[Line]:
    """The lines through markers: three points each."""
    return [mark for mark in drawn.marks if isinstance(mark, Line) and len(mark.points) == 3]


def test_one_line_a_method_with_markers_at_their_true_budgets(facts: Facts) -> None:
    metric = facts.headlines[0]
    drawn = curves(facts, metric, AXES[0])
    dots = [mark for mark in drawn.marks if isinstance(mark, Dot) and mark.tip]
    names = [dot.tip.split("@")[0] for dot in dots]
    assert names == [name for name in (*METHODS, *CONTROLS) for _ in range(3)]
    assert [line.dashed for line in lines_of(drawn)] == [False, False, True, True]
    at = {dot.tip.split(": ")[0]: dot.x for dot in dots}
    assert at["div_prune@0.25"] == at["random@0.25"] == at["uniform@0.25"]
    scale = (at["div_prune@0.5"] - at["div_prune@0.1"]) / 40  # units per percent
    assert at["fastv:layer=2@0.1"] - at["div_prune@0.1"] == pytest.approx(22.5 * scale)  # 32.5 % on average
    after = curves(facts, metric, AXES[1])
    cut = {mark.tip.split(": ")[0]: mark.x for mark in after.marks if isinstance(mark, Dot) and mark.tip}
    assert cut["fastv:layer=2@0.1"] == pytest.approx(cut["div_prune@0.1"])
    bars = {dot.tip.split(": ")[0]: dot.bars[0][0] - dot.x for dot in dots}
    assert [bars[f"{name}@0.25"] for name in (*METHODS[1:], *CONTROLS)] == pytest.approx([-STEP, 0, STEP])
    assert {dot.ink for dot in dots if dot.hollow} == {"mute"}
    assert "dense, 100.0 %" in [mark.text for mark in drawn.marks if isinstance(mark, Text)]


def test_a_line_has_one_look_everywhere(facts: Facts) -> None:
    assert [facts.style(name) for name in facts.policies] == [0, *[n for n in (1, 2, 3, 4) for _ in range(3)]]
    assert facts.lines["div_prune"] == [f"div_prune@{ratio}" for ratio in (0.1, 0.25, 0.5)]
    assert costs(facts, facts.headlines[0], AXES[2]).marks  # lines over time, too


def test_every_form_for_a_paper(run: Path, facts: Facts) -> None:
    plots = run / "plots"
    for name in ("accuracy-versus-tokens", "accuracy-versus-last-cut"):
        assert Image.open(plots / f"{name}.png").size == (1520, 920)
        drawing = ElementTree.fromstring((plots / f"{name}.svg").read_text())
        assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
        assert "div_prune" in "".join(drawing.itertext())
        assert (plots / f"{name}.pdf").read_bytes().startswith(b"%PDF-1.4")
    rows = list(csv.DictReader((run / "figures.csv").open()))
    own = {row["policy"]: row for row in rows if row["metric"] == "accuracy"}
    assert len(own) == 13
    at = own["div_prune@0.25"]
    assert (at["method"], at["ratio"], at["questions"], at["images"]) == ("div_prune", "0.25", "24", "12")
    assert float(at["tokens_mean_over_layers"]) == 16
    assert float(at["value"]) == facts.summary["policies"]["div_prune@0.25"]["metrics"]["accuracy"]["value"]
    table = (run / "report.tex").read_text()
    assert r"Method & 10\,\% & 25\,\% & 50\,\% \\" in table
    assert r"dense & \multicolumn{3}{c}{100.0" in table
    assert table.count("{") == table.count("}")
    assert "24 samples about 12 images" in table
    assert tex("a_b & 50 % {x} \\") == r"a\_b \& 50 \% \{x\} \textbackslash{}"


def test_a_pdf_holds_its_letters_and_says_where_its_parts_lie(facts: Facts) -> None:
    drawn = curves(facts, facts.headlines[0], AXES[0])
    drawn.marks.append(Text(x=9, y=9, text="(a) \\ −1 × “b” …", turned=True))
    content = pdf(drawn)
    start = int(re.search(rb"startxref\n(\d+)\n", content)[1])
    assert content[start:].startswith(b"xref\n0 10\n")
    for number, place in enumerate(re.findall(rb"(\d{10}) 00000 n ", content), start=1):
        assert content[int(place) :].startswith(b"%d 0 obj\n" % number)
    page, letters = (zlib.decompress(part) for part in re.findall(rb"stream\n(.*?)\nendstream", content, re.DOTALL))
    assert b"(\\(a\\) \\\\ \x961 \xd7 \x93b\x94 ...) Tj" in page
    assert letters[:4] == b"\x00\x01\x00\x00"
    assert page.count(b" Tj ET") == sum(isinstance(mark, Text) for mark in drawn.marks)


@pytest.mark.parametrize("width", [1440, 390])
def test_a_browser_shows_the_figure(run: Path, browser: Any, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900})
    sheet = context.new_page()
    trouble: list[str] = []
    sheet.on("console", lambda message: trouble.append(message.text))
    sheet.goto((run / "report.html").as_uri())
    assert sheet.evaluate("document.documentElement.scrollWidth") == width
    figure = sheet.locator("[data-metric=accuracy][data-axis=layer_average] svg:visible")
    assert "fastv:layer=2" in figure.text_content()
    sheet.select_option("[data-plot=axis-0]", "kept")
    assert "after the last cut" in sheet.locator("[data-metric=accuracy][data-axis=kept] svg:visible").text_content()
    sheet.locator("[data-axis=kept] svg:visible .tip").last.focus()
    assert "uniform@0.5" in sheet.inner_text("#tip")
    assert not trouble
    context.close()
