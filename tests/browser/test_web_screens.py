"""Rendered web pages: deterministic, fair to click at, told truly; what needs a browser is skipped without one."""

from __future__ import annotations

import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmopt.cli.main import main
from vlmopt.evaluation.data import Source
from vlmopt.evaluation.loading import load_data
from vlmopt.synthetic.web import screenspot as spot
from vlmopt.synthetic.web.catalogue import HELD_OUT, PAGES, TRAIN, template
from vlmopt.synthetic.web.fill import Filled, fill
from vlmopt.synthetic.web.icons import ICONS
from vlmopt.synthetic.web.names import assign
from vlmopt.synthetic.web.parts import texts
from vlmopt.synthetic.web.render import Control, Renderer, Screen, find_browser
from vlmopt.synthetic.web.windows import candidates
from vlmopt.synthetic.words import KINDS, LABELS

PLACES = re.compile(r'(?:aria-label|placeholder)="([^"]*)"|<span>([^<]*)</span></(?:button|a|label)>')


# Without a browser.


def test_pages_are_many_and_split_once_and_for_all() -> None:
    assert len(PAGES) == len(set(PAGES)) >= 40
    assert not set(TRAIN) & set(HELD_OUT)
    assert 0.2 <= len(HELD_OUT) / len(PAGES) <= 0.3
    directory = Path(spot.__file__).parent / "pages"
    assert sorted(path.stem for path in directory.glob("*.html")) == sorted(PAGES)
    assert len({template(page) for page in PAGES}) == len(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_filling_is_deterministic_complete_and_asks_nothing_of_the_network(page: str) -> None:
    for seed in range(12):
        filled = fill(page, seed)
        assert "{{" not in filled.html
        assert not re.search(r"(?i)https?:|url\(|@import|<script|src=", filled.html)
        assert filled == fill(page, seed)
        assert 12 <= filled.font_size <= 18
    assert fill(page, 0).html != fill(page, 1).html


def test_seeds_vary_names_themes_and_sizes() -> None:
    filled = [fill(page, seed) for page in PAGES for seed in range(6)]
    assert {f.theme for f in filled} == {"light", "dark"}
    assert {f.font_size for f in filled} == set(range(12, 19))
    named = Counter(name for f in filled for pair in PLACES.findall(f.html) for name in pair)
    assert set(LABELS) <= set(named)


def test_bad_pages_and_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="no page is called 'nothing'"):
        fill("nothing", 0)
    with pytest.raises(ValueError, match="seed must be an integer"):
        fill(PAGES[0], -1)


def test_names_are_all_different_whatever_the_order() -> None:
    """A greedy choice runs into a dead end in half of these cases."""
    options = [["Save", "Open"], ["Save"], ["Open", "Print"]]
    for seed in range(20):
        assert assign(options, random.Random(seed)) == ["Open", "Save", "Print"]
    with pytest.raises(ValueError, match="more controls than names"):
        assign([["Save"], ["Save"]], random.Random(0))


def test_contents_name_no_control_and_every_label_has_an_icon() -> None:
    words = {word.casefold() for sort in texts().values() for text in sort for word in re.findall(r"\w+", text)}
    assert not words & {label.casefold() for label in LABELS}
    assert set(LABELS) <= set(ICONS)


def test_images_are_lossless_and_carry_their_targets(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 320, 3), dtype=np.uint8))
    button = Control("Save", "button", (104.4, 30.0, 174.0, 59.6), None, "icon", True)
    told = spot.targets(
        Screen(PAGES[0], 3, "dark", 14, noise, (button, replace(button, target=False)), (), ()), "a.png"
    )
    out = replace(button, box=(-2.0, 190.0, 30.0, 201.0))
    (cut,) = spot.targets(Screen(PAGES[0], 3, "dark", 14, noise, (out,), (), ()), "a.png")
    assert cut["bbox"] == [0, 190, 30, 10]
    data = spot.encode(noise, {spot.KEY: json.dumps(told)})
    with Image.open(io.BytesIO(data)) as image:
        assert image.convert("RGB").tobytes() == noise.tobytes()
    (tmp_path / "a.png").write_bytes(data)
    assert spot.read_targets(tmp_path / "a.png") == told
    assert [row["bbox"] for row in told] == [[104, 30, 70, 30]]
    noise.save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="was not written by make-screens"):
        spot.read_targets(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(data[:-2000])
    with pytest.raises(ValueError, match="damaged"):
        spot.read_targets(tmp_path / "a.png")


def test_plans_take_the_pages_in_turn() -> None:
    made = spot.plan("held-out", len(HELD_OUT) + 1, [(1280, 800), (2560, 1440)], 5)
    assert [p.page for p in made[:12]] == list(HELD_OUT)
    assert (made[12].page, made[12].seed, made[0].seed) == (HELD_OUT[0], 6, 5)
    assert len({p.name for p in made}) == 2 * len(HELD_OUT) + 2
    for bad in (("nowhere", 1, [(1280, 800)]), ("train", 0, [(1280, 800)]), ("train", 1, [(640, 400)] * 2)):
        with pytest.raises(ValueError):
            spot.plan(*bad, 0)


@pytest.mark.parametrize(
    ("words", "said"), [(["--size", "big"], "WIDTHxHEIGHT"), (["--seed", "-1"], "--seed"), (["--count", "0"], "count")]
)
def test_the_command_refuses(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["make-screens", "--out", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# With a browser.


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if find_browser() is None:
        pytest.skip("no chromium is installed (apt-get install chromium)")
    with Renderer() as opened:
        yield opened


@pytest.fixture(scope="module")
def screens(renderer: Renderer) -> dict[str, Screen]:
    """Every page once, of a seed of its own."""
    return {page: renderer.render(page, number) for number, page in enumerate(PAGES)}


def test_every_page_can_be_clicked_at(screens: dict[str, Screen]) -> None:
    seen: Counter = Counter()
    for page, made in screens.items():
        assert made.image.size == (1280, 800)
        assert len(made.targets) >= 6, page
        labelled = [c for c in made.targets if c.name in LABELS]
        assert len(labelled) >= 3, page
        assert len({c.name.casefold() for c in made.targets}) == len(made.targets)
        assert candidates(made, (224, 224)), page
        for target in made.targets:
            x0, y0, x1, y1 = target.box
            assert 0 <= x0 < x1 <= 1280
            assert 0 <= y0 < y1 <= 800
            assert target.kind in KINDS
        seen.update((c.kind, c.data_type) for c in labelled)
    assert {kind for kind, _ in seen} == set(KINDS)
    assert seen["button", "icon"] > 50


def test_a_name_is_drawn_where_it_is_said_to_be(screens: dict[str, Screen]) -> None:
    """Something stands out there against what is around it."""
    for page, made in screens.items():
        pixels = np.asarray(made.image).astype(int)
        for target in (c for c in made.targets if c.name in LABELS and c.text_box):
            x0, y0, x1, y1 = (round(v) for v in target.text_box)
            part = pixels[max(y0, 0) : y1, max(x0, 0) : x1].sum(-1)
            assert part.max() - part.min() > 120, (page, target)


def test_equal_seeds_give_equal_screens(renderer: Renderer, screens: dict[str, Screen]) -> None:
    page = PAGES[7]
    again = renderer.render(page, 7)
    assert again.image.tobytes() == screens[page].image.tobytes()
    assert again.controls == screens[page].controls


HTML = """<style>*{box-sizing:border-box}body{margin:0;font:16px sans-serif}button,a,label{position:absolute}</style>
<button style="left:20px;top:20px;width:100px;height:30px">Save</button>
<button style="left:20px;top:70px;width:100px;height:30px">Twice</button>
<button style="left:20px;top:120px;width:100px;height:30px" aria-label="Twice"></button>
<button style="left:20px;top:170px;width:100px;height:30px">Covered</button>
<div style="position:absolute;left:60px;top:160px;width:200px;height:50px;background:red"></div>
<button style="left:20px;top:220px;width:100px;height:30px" aria-label="Print">
<svg width="16" height="16"></svg></button>
<label style="left:20px;top:270px"><input type="checkbox"> <span>Copy</span></label>
<label style="left:20px;top:320px;width:200px">Email<input style="display:block;width:180px;height:24px"></label>
<input style="position:absolute;left:20px;top:380px;width:180px;height:30px" placeholder="Search">
<a href="#" style="left:20px;top:430px">Read</a><p style="position:absolute;left:300px;top:430px">Read</p>
<button style="left:380px;top:20px;width:100px;height:30px;display:none">Hidden</button>
<button style="left:1230px;top:70px;width:100px;height:30px">Cut off</button>
<button role="tab" style="left:200px;top:20px;width:60px;height:30px" disabled>Off</button>
<button role="tab" style="left:280px;top:20px;width:60px;height:30px">Home</button>"""


def test_the_truth_about_a_page_made_for_it(renderer: Renderer) -> None:
    """Twice, covered, cut, hidden and disabled controls are not targets, nor is one whose name is read elsewhere."""
    made = renderer.show(Filled(HTML, "light", 16))
    found = {(c.name, c.kind, c.data_type): c for c in made.targets}
    assert set(found) == {
        ("Save", "button", "text"), ("Print", "button", "icon"), ("Copy", "checkbox", "text"), ("Home", "tab", "text"),
        ("Email", "field", "text"), ("Search", "field", "text"),
    }  # fmt: skip
    assert found["Save", "button", "text"].box == (20, 20, 120, 50)
    x0, y0, x1, y1 = found["Save", "button", "text"].text_box
    assert 20 < x0 < 70 < x1 < 120
    assert 20 < y0 < 35 < y1 < 50
    x0, y0, x1, y1 = found["Print", "button", "icon"].text_box
    assert (x1 - x0, y1 - y0) == (16, 16)
    copy = found["Copy", "checkbox", "text"]
    assert copy.box[0] == 20  # the box to tick and its words
    assert copy.text_box[0] > 30
    email = found["Email", "field", "text"]
    assert email.text_box[3] <= email.box[1] + 4  # the name stands above
    inside = found["Search", "field", "text"]
    assert inside.box == (20, 380, 200, 410)
    assert inside.box[0] < inside.text_box[0] < inside.text_box[2] < inside.box[2]
    assert {"Read", "Twice", "Covered"} <= {text.text for text in made.texts}
    assert "Hidden" not in {text.text for text in made.texts}
    pixels = np.asarray(made.image)
    assert tuple(pixels[205, 150]) == (255, 0, 0)


def test_make_screens_writes_what_screenspot_readers_read(
    renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It resumes where it stopped, leaves nothing half done, and needs no browser when all is there."""

    class Open:
        """The session that is open already: a second one cannot run in this thread."""

        size, count = (1280, 800), 0

        def __init__(self, size: tuple[int, int], cell: int) -> None:
            assert (size, cell) == (self.size, 1)

        def __enter__(self) -> Open:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def render(self, page: str, seed: int) -> Screen:
            Open.count += 1
            return renderer.render(page, seed)

    monkeypatch.setattr(spot, "Renderer", Open)
    path, rows = spot.make(tmp_path, "held-out", 3)
    assert Open.count == 3
    assert {row["split"] for row in rows} == {"held-out"}
    assert {row["page"] for row in rows} == set(HELD_OUT[:3])
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".png", ".png", ".png"]
    before = path.read_bytes()
    next(tmp_path.glob("*.png")).unlink()
    assert spot.make(tmp_path, "held-out", 3)[1] == rows
    assert Open.count == 4
    assert path.read_bytes() == before
    data = load_data(Source(data=[str(path)], boxes="xywh", run=tmp_path))
    assert data.format == "screenspot"
    assert len(data.samples) == len(rows) >= 18
    for sample, row in zip(data.samples, rows, strict=True):
        x, y, w, h = row["bbox"]
        assert sample.error is None
        assert sample.box == (x, y, x + w, y + h)
        assert sample.category == f"web/{row['data_type']}"
        assert sample.extra["page"] == row["page"]


def test_controls_are_moved_onto_the_cells(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels begin where a cell does and stand in the middle of a row of cells."""

    def near(cell: int) -> list[bool]:
        monkeypatch.setattr(renderer, "cell", cell)
        boxes = [
            c.text_box
            for page in PAGES[:4]
            for c in renderer.render(page, 5).targets
            if c.kind == "button" and c.data_type == "text" and c.text_box
        ]
        starts = [(x0 % 14, (y0 + y1) / 2 % 14) for x0, y0, _, y1 in boxes]
        return [min(x, 14 - x) <= 1.5 and abs(y - 7) <= 1.5 for x, y in starts]

    moved, left = near(14), near(1)
    assert len(moved) > 5
    assert sum(moved) >= 0.9 * len(moved)
    assert sum(left) < 0.5 * len(left)
