"""The report of a run: what it says, that it needs nothing else, and that a real browser shows it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError
from PIL import Image

from tests.support.report_runs import EVIL, MAPPED, POLICIES, record, whole, write_run
from vlmopt.evaluation.report import write_report
from vlmopt.evaluation.report.facts import Facts, Figure
from vlmopt.evaluation.report.gallery import CARDS, Option, changed, chosen, differing
from vlmopt.evaluation.report.numbers import number
from vlmopt.evaluation.report.palette import DARK, LIGHT
from vlmopt.evaluation.report.templates import environment, render


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = whole(tmp_path_factory.mktemp("report") / "run")
    assert write_report(directory) == directory / "report.html"
    return directory


@pytest.fixture(scope="module")
def facts(run: Path) -> Facts:
    return Facts.load(run)


class Elements(HTMLParser):
    """Elements in order, with the text inside of each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[dict[str, Any]] = []
        self._open: list[dict[str, Any]] = []
        self.feed(page)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        parents = [element["tag"] for element in self._open]
        self.found.append({"tag": name, "text": "", "parents": parents, **dict(attributes)})
        if name not in ("img", "meta", "link", "br", "input"):
            self._open.append(self.found[-1])

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        parents = [element["tag"] for element in self._open]
        self.found.append({"tag": name, "text": "", "parents": parents, **dict(attributes)})

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop()["tag"] == name, "an element is closed that is not the last opened one"

    def handle_data(self, text: str) -> None:
        for element in self._open:
            element["text"] += text

    def all(self, name: str) -> list[dict[str, Any]]:
        return [element for element in self.found if element["tag"] == name]


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report.html").read_text()


@pytest.fixture(scope="module")
def elements(page: str) -> Elements:
    return Elements(page)


def test_the_page_says_what_the_summary_says(run: Path, elements: Elements) -> None:
    one = json.loads((run / "summary.json").read_text())["policies"]["half"]
    rows = [row["text"] for row in elements.all("tr") if row["text"].startswith("half")]
    overview = rows[0]
    accuracy, change = one["metrics"]["accuracy"], one["versus_dense"]["accuracy"]
    for figure in (100 * accuracy["value"], 100 * accuracy["low"], 100 * accuracy["high"]):
        assert number(figure) in overview
    assert number(100 * change["difference"], sign=True) in overview
    assert "worse" in overview
    assert "50 % of 64" in overview
    assert "1.63 × as fast" in overview  # 103 ms by 63 ms
    assert f"{one['errors']} of {one['n']}" in overview
    categories = next(t for t in elements.all("table") if "Accuracy, % per category" in t["text"])["text"]
    popular = one["by_category"]["popular"]["metrics"]["accuracy"]
    assert number(100 * popular["value"]) in categories
    assert "popular" in categories
    assert f"{popular['n']}{popular['pictures']} images" in categories


def test_the_page_needs_nothing_else(page: str, elements: Elements) -> None:
    """No address but data, and a policy that lets only the page's own script run."""
    for element in elements.found:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert element.get(name) is None or element[name].startswith(("data:", "#")), element
    assert not re.search(r"url\(|@import|https?://", page)
    (policy,) = (m["content"] for m in elements.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    (script,) = elements.all("script")
    digest = base64.b64encode(hashlib.sha256(script["text"].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_texts_stay_texts(page: str, elements: Elements) -> None:
    assert not any("onerror" in element for element in elements.found)
    assert EVIL in [heading["text"] for heading in elements.all("h3")]
    assert "a|b <i>" in [cell["text"] for cell in elements.all("th")]
    choice = environment().get_template("figures.html").module.choice("<&>", "data-of", '"', [Option("'", "<b>")])
    option = '<option value="&#39;">&lt;b&gt;</option>'
    assert choice == f'<label>&lt;&amp;&gt;<select data-of="&#34;">{option}</select></label>'


def test_a_template_leaves_no_gap_where_a_name_is_missing() -> None:
    with pytest.raises(UndefinedError, match="facts"):
        render("report.md")


def test_the_page_can_be_read_aloud(elements: Elements) -> None:
    """Texts for images, captions and headers for tables, labels for choices; no id twice."""
    images = [e for e in elements.all("img") if "dialog" not in e["parents"]]
    assert len(images) > 10
    assert all(image["alt"] for image in images)
    tables = elements.all("table")
    assert len(tables) == len(elements.all("caption")) > 3
    assert all(header["scope"] in ("row", "col") for header in elements.all("th"))
    assert all(drawing.get("aria-label") or drawing.get("aria-hidden") for drawing in elements.all("svg"))
    assert all("label" in choice["parents"] for choice in elements.all("select"))
    ids = [element["id"] for element in elements.found if "id" in element]
    assert len(ids) == len(set(ids))
    known = [link["href"][1:] for link in elements.all("a")]
    assert set(known) <= set(ids)
    levels = [int(e["tag"][1]) for e in elements.found if re.fullmatch("h[1-6]", e["tag"])]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_both_themes_have_all_colours_and_contrast() -> None:
    def light(colour: str) -> float:
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for theme in (LIGHT, DARK):
        paper = light(theme["paper"])
        for name in ("ink", "mute", "front", *(f"p{i}" for i in range(9))):
            ends = sorted((paper, light(theme[name])))
            assert (ends[1] + 0.05) / (ends[0] + 0.05) >= 4.5, name
    assert LIGHT.keys() == DARK.keys()


def test_numbers_for_people() -> None:
    assert [number(v) for v in (None, -0.04, -1.25, 12345.6)] == ["–", "0.0", "−1.2", "12,345.6"]
    assert [number(v, sign=True) for v in (0.04, 2, -2)] == ["0.0", "+2.0", "−2.0"]


def test_the_gallery_has_what_changed(facts: Facts, elements: Elements) -> None:
    """Neither what stayed nor what failed; the words that differ are marked; what is missing is said."""
    assert [s.dense.index for s in changed(facts)] == [*range(1, 24, 2), 24, 25, 26]
    cards = elements.all("article")
    assert len(cards) == 15
    assert cards[1]["text"].count("✗ wrong") == 2
    assert "32 of 64 visual tokens" in cards[1]["text"]
    assert ["no map was saved" in card["text"] for card in cards[:3]] == [False, False, True]
    assert [mark["text"] for mark in elements.all("mark")] == [EVIL, "wall", "sea"]
    assert "✗ 1 object not there" in cards[-1]["text"]
    figures = [e for e in elements.all("figure") if "data-policy" in e]
    assert {e["data-outcome"] for e in figures} == {"worse", "other"}
    assert list(differing("one two", "one three")) == ["one three"]


def test_a_difference_needs_the_interval_and_the_test() -> None:
    assert Figure(-5, -9, -1, 99, 0.01).reading(1) == Figure(5, 1, 9, 99, 0.01).reading(-1) == "worse"
    assert Figure(5, 1, 9, 99, 0.049).reading(1) == "better"
    assert Figure(-5, -9, -1, 9, 0.12).reading(1) == Figure(-5, -9, 1, 99, 0.01).reading(1) == "no clear difference"
    assert Figure(-5, -9, -1, 99, 0.01).reading(0) == ""


def test_errors_are_listed(elements: Elements) -> None:
    table = next(t for t in elements.all("table") if t["text"].startswith("Errors"))
    assert table["text"].count("image not found: <gone.png>") == len(POLICIES)


def test_policies_take_turns_when_there_are_too_many_samples(tmp_path: Path) -> None:
    rows = [record(n, "dense") for n in range(200)]
    rows += [record(n, "half", prediction="no", correct=False) for n in range(200)]
    rows += [record(n, "rare", prediction="no" if n > 190 else "yes") for n in range(200)]
    facts = Facts(Path(), {"policies": dict.fromkeys(("dense", "half", "rare"))}, {}, rows)
    cards = chosen(changed(facts), facts.policies)
    assert len(cards) == CARDS
    assert sum(any(r.policy == "rare" for r in card.others) for card in cards) == 9
    assert [card.dense.index for card in cards] == sorted(card.dense.index for card in cards)


def test_lost_files_are_said_and_the_rest_is_reported(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "pictures")
    (copy / "kept" / "half" / "3.npz").write_bytes(b"cut off")
    (copy / "kept" / "half" / "7.npz").unlink()
    (copy / "environment.json").unlink()
    text = Elements(write_report(copy).read_text())
    said = [e["text"] for e in text.found if e.get("class") == "missing"]
    assert sum("map cannot be read" in one for one in said) == 2
    assert sum("image cannot be read" in one for one in said) == 15 - len(MAPPED)  # copies beside maps stand in


def test_the_table_for_a_readme(run: Path, facts: Facts) -> None:
    lines = (run / "report.md").read_text().splitlines()
    rows = [re.split(r"(?<!\\)\|", line) for line in lines if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    half = next(line for line in lines if line.startswith("| `half`"))
    accuracy = facts.figure("half", facts.headlines[0])
    assert f"{number(accuracy.value)} ({number(accuracy.low)} to {number(accuracy.high)})" in half
    assert "**−" in half
    assert rows[-1][1] == " `a\\|b <i>` "
    links = re.findall(r"!\[.+\]\((.+)\)", "\n".join(lines))
    assert len(links) == 5
    assert all(Image.open(run / link).format == "PNG" for link in links)


def test_names_of_strangers_are_no_markup(tmp_path: Path) -> None:
    """The model, the data and the policies are named by whoever made them."""
    names = ("dense", "``x`` `y` | z", EVIL)
    rows = [record(sample, policy) for sample in range(4) for policy in names]
    run = write_run(tmp_path / "run", rows, names)
    summary = json.loads((run / "summary.json").read_text())
    summary |= {
        "model": EVIL,
        "data": [f"a|b/{EVIL} [l](javascript:x) ![i](http://e.x/i.png) **b** `c` _d_ https://e.x"],
    }
    (run / "summary.json").write_text(json.dumps(summary))
    write_report(run)
    page = (run / "report.html").read_text()
    assert "<script>window" not in page
    assert "<img src=x" not in page
    table = (run / "report.md").read_text()
    outside = re.sub(r"(?<!`)(`+)(?!`)(.*?)(?<!`)\1(?!`)", "", re.sub(r"!\[[^\]]*\]\(plots/[\w-]+\.png\)", "", table))
    outside = outside.replace("p < 0.05", "").replace("**", "").replace("|", "").replace("### ", "").replace("\\", "")
    assert not re.search(r"[<>`\[\]*]|_\w|://", outside)
    rows_ = [re.split(r"(?<!\\)\|", text) for text in table.splitlines() if text.startswith("|")]
    assert len({len(row) for row in rows_}) == 1
    assert "4 samples about 2 images" in table
    assert "4 samples about 2 images" in page


@pytest.mark.parametrize("case", ["open", "text", "alone", "unfinished", "failed"])
def test_runs_that_lack_something_are_reported(tmp_path: Path, case: str) -> None:
    """Nothing marked, no visual tokens, dense alone, answers still to come, a policy that failed throughout."""
    policies = ("dense",) if case == "alone" else ("dense", "half")
    changes: dict[str, Any] = {"image": None}
    if case == "open":
        changes |= {"kind": "open", "correct": None, "metrics": {}, "answer": None}
    if case == "text":
        changes |= {"tokens": {"prompt": 9, "visual": 0, "kept": 0, "layer_average": 0.0}}
    rows = [record(sample, policy, **changes) for sample in range(4) for policy in policies]
    if case == "failed":
        why = {"error": "no memory", "prediction": None, "tokens": None, "ms": None, "correct": False}
        marks = {"yes": None, "unparsable": True}
        rows = [r if r.policy == "dense" else record(r.index, "half", metrics=marks, **why) for r in rows]
    made = write_run(tmp_path / "run", rows, policies, samples=9 if case == "unfinished" else None)
    text = write_report(made).read_text()
    assert ("Not complete" in text) == (case == "unfinished")
    assert "nan" not in text.lower().replace("nano", "")
    assert len(list((made / "plots").glob("*.png"))) == 5


def test_no_run_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no summary\.json"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99"):
        write_report(tmp_path)


@pytest.mark.parametrize(("width", "scheme"), list(product((1280, 390), ("light", "dark"))))
def test_a_browser_shows_it(run: Path, browser: Any, width: int, scheme: str) -> None:
    """Nothing is asked of the network, nothing complains, nothing sticks out, and every control does its work."""
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    sheet = context.new_page()
    trouble: list[str] = []
    sheet.on("console", lambda message: trouble.append(message.text))
    sheet.on("pageerror", lambda error: trouble.append(str(error)))
    sheet.on("request", lambda asked: trouble.append(asked.url) if asked.url.startswith("http") else None)
    sheet.goto((run / "report.html").as_uri())
    assert sheet.evaluate("document.documentElement.scrollWidth") == width
    assert sheet.evaluate("window.caught") is None
    paper = sheet.evaluate("getComputedStyle(document.querySelector('section')).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    sheet.click("#theme")
    assert sheet.evaluate("getComputedStyle(document.querySelector('section')).backgroundColor") != paper
    letters = "e => e.getBoundingClientRect().height"
    assert all(size >= 11 for size in sheet.locator("#cost svg:visible text").evaluate_all(f"es => es.map({letters})"))

    overview = sheet.locator("#overview table")
    column = overview.locator("thead th", has_text="Accuracy").first
    for order in ("descending", "ascending"):
        column.locator("button").click()
        assert column.get_attribute("aria-sort") == order
        policies = overview.locator("tbody th").all_inner_texts()
        assert policies == (list(POLICIES) if order == "descending" else list(reversed(POLICIES)))
    sheet.locator("#overview .copy").click()
    sheet.wait_for_function("document.querySelector('#overview .copy').textContent === 'Copied'")
    copied = sheet.evaluate("navigator.clipboard.readText()").splitlines()
    assert len({line.replace("\\|", "").count("|") for line in copied}) == 1
    assert copied[0].startswith("| Policy | Visual tokens kept |")
    assert copied[2].startswith("| a\\|b <i> | 16 25 % of 64 |")

    assert sheet.locator("[data-metric=accuracy]:visible").count() == 2
    sheet.select_option("[data-plot=metric]", "f1")
    sheet.select_option("[data-plot=axis-1]", "total_ms")
    shown = sheet.locator("[data-metric]:visible").evaluate_all("es => es.map(e => e.dataset.metric + e.dataset.axis)")
    assert shown == ["f1layer_average", "f1total_ms"]
    sheet.locator("[data-metric]:visible .tip:visible").first.focus()
    assert "F1" in sheet.inner_text("#tip")

    assert sheet.locator("article:visible").count() == 12
    sheet.click("#more")
    assert sheet.locator("article:visible").count() == 15
    sheet.select_option("[data-filter=policy]", "half")
    sheet.select_option("[data-filter=outcome]", "other")
    assert sheet.locator("article:visible").count() == 1
    assert sheet.inner_text("#count") == "1 sample"
    sheet.select_option("[data-filter=outcome]", "")
    sheet.locator("article:visible .zoom").first.click()
    assert sheet.locator("dialog img").evaluate("e => e.naturalWidth") > 100
    sheet.click("dialog button")
    broken = "es => es.filter(e => !e.complete || !e.naturalWidth).length"
    assert sheet.locator("article img").evaluate_all(broken) == 0
    assert not trouble
    context.close()
