"""Tables of the documentation are what the results say, and every figure of a GPU finds its place among them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FACTS = {
    "device": "NVIDIA H200", "vectors": "AVX2", "threads": 16, "torch": "2.11.0", "transformers": "5.17.0",
    "date": "2026-12-01T10:00:00+00:00", "cuda": "13.0", "triton": "3.6.0",
}  # fmt: skip


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tables

    return tables


def test_pages_show_what_was_measured(tables: Any) -> None:
    found = list(tables.pages())
    assert len(found) >= 3
    assert not [path.name for path, text, made in found if text != made]
    shown = {name for path, text, _ in found for name, _ in tables.MARKS.findall(text)}
    assert shown == set(tables.MADE)


def test_every_table_of_speed_names_its_machine(tables: Any) -> None:
    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    for name, body in tables.MARKS.findall(text):
        assert re.search(r"\n\*.+ torch [\d.+a-z]+, transformers [\d.]+; \d{4}-\d\d-\d\d.*\.\*\n$", body), name


def test_run_all_measures_every_result_of_a_table(tables: Any) -> None:
    script = (ROOT / "benchmarks" / "run_all.sh").read_text(encoding="utf-8")
    source = (ROOT / "benchmarks" / "speed_tables.py").read_text(encoding="utf-8")
    names = set(re.findall(r'(?:newest|records)\("(\w+)"', source))
    assert names
    assert not [name for name in names if f"benchmarks/{name}.py" not in script]


def test_what_a_gpu_told_is_written_and_what_failed_is_named(
    tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["table_parts"], "RESULTS", tmp_path)
    assert tables.MADE["gpu"]() == "No GPU has been measured yet.\n"
    row = {"pattern": "min_p", "ms": {"dense": 9.0}, "speedup": 1.9, "target": 1.8, "without_build": 2.0, "kept": 0.1}
    units = {
        "correct/llava": {"right": True, "rows": [{"pruned": 0.01}]},
        "sparse/attention 32768": {"tokens": 32768, "rows": [{**row, "recall": 0.97}]},
        "screens/screen": {"error": "OutOfMemoryError: too large"},
    }
    with (tmp_path / "gpu.jsonl").open("w") as file:
        for toy in (True, False):
            for name, unit in units.items():
                file.write(json.dumps({"unit": name, "toy": toy, "call": 1.0, "machine": FACTS, **unit}) + "\n")
    said = tables.MADE["gpu"]()
    assert "| llava | right | 1.0e-02 |" in said
    assert "| 32768 | `min_p` | 9.0 ms | 1.90 (1.8) | 2.00 | 10.0 % | 0.970 |" in said
    assert "Failed: `screens/screen`: OutOfMemoryError: too large." in said
    assert "NVIDIA H200 with AVX2, 16 threads" in said
