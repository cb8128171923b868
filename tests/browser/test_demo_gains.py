"""Figures of a run are gains in words, and losses where they are losses."""

from __future__ import annotations

import pytest

from tests.support.tab_page import dense, run_of
from vlmopt.apps.page.gains import gains, sized, timed, times
from vlmopt.measure import Spread
from vlmopt.pruning import FastV


@pytest.mark.parametrize(
    ("ratio", "says"), [(1.7, "1.7× faster"), (0.5, "2.0× slower"), (1.04, "as fast"), (0.96, "as fast")]
)  # fmt: skip
def test_a_ratio_is_told_in_words(ratio: float, says: str) -> None:
    assert times(ratio, "faster", "slower", "as fast") == says


def test_a_time_that_grew_is_slower_and_chance_is_called_chance() -> None:
    slow, fast = Spread(120.0, 115.0, 125.0), Spread(60.0, 55.0, 65.0)
    gain = timed("First", slow, fast, 2.0, "ms", "About.")
    assert (gain.value, gain.detail, gain.colour) == ("2.0× faster", "120 → 60 ms", "green")
    gain = timed("First", fast, slow, 0.5, "ms", "About.")
    assert (gain.value, gain.detail, gain.colour) == ("2.0× slower", "60 → 120 ms", "orange")
    assert "chance" not in gain.about
    gain = timed("First", slow, Spread(100.0, 90.0, 118.0), 1.2, "ms", "About.")
    assert (gain.value, gain.colour) == ("1.2× faster", "gray")
    assert "may be chance" in gain.about
    gain = timed("First", Spread(120.0, 120.0, 120.0), Spread(60.0, 60.0, 60.0), 2.0, "ms", "About.")
    assert (gain.value, gain.colour) == ("2.0× faster", "gray")
    assert "One run each" in gain.about


def test_sizes_are_smaller_larger_or_the_same() -> None:
    assert sized("Cache", 4096, 1024, 1024, "KiB", "")[1:4] == ("4.0× smaller", "4 → 1 KiB", "green")
    assert sized("Cache", 1024, 4096, 1024, "KiB", "")[1:4] == ("4.0× larger", "1 → 4 KiB", "orange")
    assert sized("Cache", 0, 0, 1024, "KiB", "")[1:4] == ("the same", "0 → 0 KiB", "gray")


def test_a_run_that_prunes_late_says_what_a_layer_sees() -> None:
    run = run_of([FastV(keep_ratio=0.25, layer=2)])
    first = next(gains(dense().measurement, run.optimized.measurement))
    assert (first.value, first.detail) == ("64 → 16", "32 a layer on average")
    told = {gain.label: gain.value for gain in gains(dense().measurement, dense().measurement)}
    assert (told["Visual tokens"], told["To the first token"], told["KV cache"]) == ("64", "as fast", "the same")
