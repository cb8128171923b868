"""What presets are said to cost is what was measured, wherever it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlmopt import catalogue

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import preset_tables

    return preset_tables


def test_prices_are_those_of_the_results(tables: Any) -> None:
    prices = tables.prices()
    cuts = {"balanced", "gentle", "aggressive", "question-25", "screens", "screens-30", "video-25"}
    assert cuts | {"small-cache"} == set(prices)
    assert {name: catalogue.presets()[name].price for name in prices} == prices


def test_the_page_shows_what_was_measured(tables: Any) -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    assert f"{tables.BEGIN}{tables.tables()}{tables.END}" in page


def test_a_price_is_what_is_lost_with_its_interval(tables: Any) -> None:
    def blocks(*marks: str) -> dict[int, dict[str, Any]]:
        return {number: {"marks": text, "kinds": ["colour"] * len(text)} for number, text in enumerate(marks)}

    dense, worse = blocks(*["1111" * 25] * 3), blocks(*["0111" * 25] * 3)
    assert tables.lost(dense, worse).startswith("25.0 (20.")
    assert tables.lost(worse, dense).startswith("−25.0 (−30.")
    assert tables.lost(dense, dense) == "0.0 (0.0 to 0.0)"
