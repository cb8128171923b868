"""What the README shows runs, and what it lists exists."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from tests.support.stock import save_checkpoint
from tools import readme_estimate
from vlmopt import catalogue

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_quickstart_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quickstart, second = blocks()[:2]
    checkpoint = save_checkpoint(tmp_path / "model")
    code = quickstart.replace('"Qwen/Qwen2.5-VL-3B-Instruct"', repr(str(checkpoint)))
    assert code != quickstart
    Image.new("RGB", (112, 112), "white").save(tmp_path / "page.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    exec(second.replace("layer=2", "layer=1").replace("layer=4", "layer=3"), names)  # its layers are few
    assert "div_prune" in capsys.readouterr().out


def test_methods_are_counted_right() -> None:
    kinds = Counter(entry.kind for entry in catalogue.built_in())
    for kind, words in (
        ("selector", "selectors"),
        ("correction", "corrections"),
        ("pattern", "patterns"),
        ("eviction", "evictions"),
        ("decoding", "steps of decoding"),
    ):
        assert f"**{kinds[kind]} {words}**" in TEXT


def test_the_table_of_presets_is_that_of_the_data() -> None:
    rows = re.findall(r"^\| (.*?) \| `([\w-]+)`(.*?) \| (.*?) \| (.*?) \| (.*?) \|$", TEXT, re.MULTILINE)
    assert len(rows) >= 8
    for goal, name, mark, keeps, price, avoid in rows:
        row = catalogue.presets()[name]
        assert (goal, keeps, price, avoid) == (row.goal, row.keeps, row.price, row.avoid)
        assert (mark == " (default)") == (name == catalogue.default())


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 200
    assert len(TEXT.encode()) <= 12 * 1024


def test_links_and_images_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_the_figures_of_the_caption_are_those_of_the_table() -> None:
    dense, pruned = (re.search(rf"^\| {kept} \| \d+ \| (\d+) ms", TEXT, re.MULTILINE) for kept in ("all", "0.25"))
    assert dense is not None
    assert pruned is not None
    assert f"falls from {int(dense[1]) / 1000:.2f} to {int(pruned[1]) / 1000:.2f} s" in TEXT


def test_predictions_are_those_of_the_code() -> None:
    assert readme_estimate.table() in TEXT
