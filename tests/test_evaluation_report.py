"""The report of a run: what it says, that it needs nothing else, and that a real browser shows it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlmopt.accounting import VisualMap
from vlmopt.evaluation.maps import save_maps, save_picture
from vlmopt.evaluation.records import Record, Writer, file_name, part
from vlmopt.evaluation.report import write_report
from vlmopt.evaluation.report.draw import Box, Dot, Text, png, text_width
from vlmopt.evaluation.report.facts import AXES, Facts, Figure, Place, number
from vlmopt.evaluation.report.gallery import CARDS, changed, chosen, differing
from vlmopt.evaluation.report.labels import Named, Rect, labels
from vlmopt.evaluation.report.markup import tag
from vlmopt.evaluation.report.palette import DARK, LIGHT
from vlmopt.evaluation.report.plots import CLOSE, PICTURE, ROOM, STEP, Point, apart, front, stages, ticks, tradeoff
from vlmopt.evaluation.summary import summarize
from vlmopt.worlds import scene

EVIL = "</script><script>window.caught = 1</script><img src=x onerror='window.caught = 1'>"
POLICIES = ("dense", "half", "a|b <i>")
MAPPED = (1, 3, 7, 24, 25)  # samples with maps; drawing them takes its time
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def request(policies: tuple[str, ...], samples: int) -> dict[str, Any]:
    return {
        "format": 1, "model": "some/model", "dtype": "float32", "data": ["data.jsonl"], "data_format": "manifest",
        "digest": "0123", "samples": samples, "limit": None, "seed": 0, "batch_size": 4, "prompt": "{question}",
        "decoding": {"do_sample": False, "max_new_tokens": {"yes_no": 16}}, "parser": {"yes_no": "reference"},
        "notes": [], "policies": {name: {"format": 1, "seed": 0} for name in policies},
    }  # fmt: skip


ENVIRONMENT = {
    "format": 1, "date": "2026-01-02T03:04:05+00:00", "command": ["vlmopt", "eval"], "vlmopt": "0", "commit": None,
    "python": "3", "packages": {"torch": "2"}, "platform": "some", "device": "a device", "processes": 1, "threads": 1,
    "model": {"type": "some", "parameters": 1000, "dtype": "float32", "attention": "sdpa"},
    "starts": [{"date": "2026-01-02T03:04:05+00:00", "command": ["vlmopt", "eval", "--out", "a b"]}],
}  # fmt: skip


def record(sample: int, policy: str, **changes: Any) -> Record:
    """A question about presence: dense is right on all, half wrong on every fourth, the third on every second."""
    step = {"dense": 1000, "half": 4}.get(policy, 2)
    right = sample % step != step - 1
    share = {"dense": 1.0, "half": 0.5}.get(policy, 0.25)
    ms = {"vision": 20.0, "prefill": 80.0 * share, "scoring": None if share == 1 else 3.0, "decode": 10.0}
    ms |= {"ttft": 103 + 80.0 * (share - 1), "total": 115 + 80.0 * (share - 1)}
    facts: dict[str, Any] = {
        "question": f"Is there a thing, number {sample}?", "answer": "yes", "prediction": "yes" if right else "no",
        "category": ("random", "popular")[sample % 2], "kind": "yes_no", "correct": right, "picture": str(sample // 2),
        "metrics": {"yes": right, "unparsable": False}, "image": f"pictures/{sample // 2}.png",
        "tokens": {"prompt": 80, "visual": 64, "kept": 64 * share, "layer_average": 64 * (1 + share) / 2},
        "ms": ms, "decode_tokens_per_s": 50.0, "memory_bytes": 2**30, "new_tokens": 2, "batch": 4, "call": str(sample),
    }  # fmt: skip
    return Record(id=f"q/{sample}", index=sample, policy=policy, **{**facts, **changes})


def write_run(run: Path, rows: list[Record], policies: tuple[str, ...] = POLICIES, samples: int | None = None) -> Path:
    """A run directory as a run leaves it."""
    run.mkdir(parents=True, exist_ok=True)
    count = len({row.id for row in rows}) if samples is None else samples
    (run / "run.json").write_text(json.dumps(request(policies, count)))
    (run / "environment.json").write_text(json.dumps(ENVIRONMENT))
    writer = Writer(part(run, 0))
    writer.append(rows)
    writer.close()
    summarize(run)
    return run


def whole(run: Path) -> Path:
    """Questions, clicks, captions, an error, a text that would like to be code, and maps of what changed."""
    rows = [record(sample, policy) for sample in range(24) for policy in POLICIES]
    for policy, text in zip(POLICIES, ("yes", "no", EVIL), strict=True):
        rows.append(record(24, policy, question=EVIL, prediction=text, correct=text == "yes"))
        box = {"box": [20, 20, 60, 50], "point": [30 + len(text), 30]}
        click = {"kind": "click", "answer": None, "extra": box, "category": "mobile/icon", "image": "pictures/0.png"}
        rows.append(record(25, policy, metrics={"unparsable": False}, prediction=f"({len(text)}, 1)", **click))
        false = POLICIES.index(policy)
        marks = {"words": 9, "cut_off": False, "said": 3, "false": false, "names": 3, "found": 3 - false, "there": 3}
        said = "a red square, a blue star and a green " + ("circle", "wall", "sea")[false]
        caption = {"kind": "caption", "answer": None, "correct": None, "category": "", "extra": {"objects": ["star"]}}
        rows.append(record(26, policy, prediction=said, metrics=marks, image="pictures/1.png", **caption))
    lost = {"prediction": None, "tokens": None, "ms": None, "image": "gone.png"}
    rows += [record(27, policy, error="picture not found: <gone.png>", correct=None, **lost) for policy in POLICIES]
    (run / "pictures").mkdir(parents=True)
    for number_ in range(13):
        scene(number_, (112, 112)).image.save(run / "pictures" / f"{number_}.png")
    return write_run(run, [with_map(run, row) for row in rows])


def with_map(run: Path, row: Record) -> Record:
    if row.policy == "dense" or row.error or row.index not in MAPPED:
        return row
    coords = torch.tensor([[0, y, x] for y in range(8) for x in range(8)])
    kept = torch.arange(64) < int(row.tokens["kept"])
    none = torch.zeros(64, dtype=torch.bool)
    path, seen = f"kept/{file_name(row.policy)}/{row.index}.npz", f"kept/seen/{row.index}.webp"
    save_maps(run / path, [VisualMap(0, "image", (1, 8, 8), coords, kept, none, none, torch.arange(64), None)])
    save_picture(run / seen, scene(row.index // 2, (112, 112)).image)
    return Record(**{**row.__dict__, "map": path, "seen": seen})


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
    assert tag("p", "<&>", tag("b", "'"), title='"') == '<p title="&quot;">&lt;&amp;&gt;<b>&#x27;</b></p>'


def test_the_page_can_be_read_aloud(elements: Elements) -> None:
    """Texts for pictures, captions and headers for tables, labels for choices; no id twice."""
    pictures = [e for e in elements.all("img") if "dialog" not in e["parents"]]
    assert len(pictures) > 10
    assert all(picture["alt"] for picture in pictures)
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


def point(name: str, cost: float, worth: float) -> Point:
    return Point(name, Place(cost, cost, cost), Figure(worth, worth - 5, worth + 5, 9))


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


def test_pictures_have_ink_where_the_points_are(run: Path, facts: Facts) -> None:
    metric = facts.headlines[0]
    drawn = tradeoff(facts, metric, AXES[0], PICTURE)
    image = Image.open(run / "plots" / "accuracy-versus-kept-tokens.png")
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


def test_points_of_one_place_stand_side_by_side() -> None:
    assert apart([10.0, 50.0, 10.0]) == [10 - STEP / 2, 50.0, 10 + STEP / 2]
    assert apart([10.0, 10.0 + CLOSE]) == [10.0, 10.0 + CLOSE]
    assert apart([]) == []
    many = apart([50.0] * 15)
    assert many == sorted(many)
    assert (many[0], many[-1]) == (50 - ROOM / 2, 50 + ROOM / 2)


def test_ticks_are_round() -> None:
    assert ticks(0, 100, 5) == [0, 20, 40, 60, 80, 100]
    assert ticks(0.31, 0.89, 5) == pytest.approx([0.4, 0.6, 0.8])
    assert ticks(980, 1020, 4) == [980, 990, 1000, 1010, 1020]


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
    assert table["text"].count("picture not found: <gone.png>") == len(POLICIES)


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
    assert sum("picture cannot be read" in one for one in said) == 15 - len(MAPPED)  # copies beside maps stand in


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
    assert len(links) == 4
    assert all(Image.open(run / link).format == "PNG" for link in links)


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
    assert len(list((made / "plots").glob("*.png"))) == 4


def test_no_run_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no summary\.json"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99"):
        write_report(tmp_path)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    drive = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium is installed (apt-get install chromium)")
    with drive.sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize(("width", "scheme"), list(product((1280, 390), ("light", "dark"))))
def test_a_browser_shows_it(run: Path, browser: Any, width: int, scheme: str) -> None:
    """Nothing is asked of the network, nothing complains, nothing sticks out, and every control does its work."""
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
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

    assert sheet.locator("[data-metric=accuracy]:visible").count() == 2
    sheet.select_option("[data-plot=metric]", "f1")
    sheet.select_option("[data-plot=axis-1]", "total_ms")
    shown = sheet.locator("[data-metric]:visible").evaluate_all("es => es.map(e => e.dataset.metric + e.dataset.axis)")
    assert shown == ["f1kept", "f1total_ms"]
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
