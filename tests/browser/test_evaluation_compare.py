"""Two runs side by side: paired where they were asked alike, in figures, words and a browser."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.report_runs import record, write_run
from vlmopt.cli.main import main
from vlmopt.evaluation.compare import OTHERWISE, compare_runs
from vlmopt.evaluation.report.compared import Compared, write_comparison

NAMES = ("dense", "half")


def run_of(directory: Path, samples: range, wrong: int, policies: tuple[str, ...] = NAMES, **changes: Any) -> Path:
    """A run whose second policy is wrong on the first `wrong` samples."""
    rows = []
    for sample in samples:
        for policy in policies:
            right = policy == "dense" or sample >= wrong
            said = {"correct": right, "prediction": "yes" if right else "no"}
            marks = {"yes": right, "unparsable": False}
            rows.append(replace(record(sample, policy, metrics=marks, image=None, **said), **changes))
    return write_run(directory, rows, policies)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("runs")
    return run_of(home / "a", range(40), 0), run_of(home / "b", range(4, 44), 20)


def test_samples_that_agree_are_paired_and_the_others_counted(runs: tuple[Path, Path]) -> None:
    found = compare_runs(*runs)
    assert (found["samples"], found["pictures"]) == (36, 18)
    assert found["left_out"] == {"only in the first run": 4, "only in the second run": 4}
    half = found["policies"]["half"]
    assert [side["accuracy"]["value"] for side in half["metrics"]] == [1.0, pytest.approx(20 / 36)]
    change = half["difference"]["accuracy"]
    assert change["difference"] == pytest.approx(-16 / 36)
    assert change["low"] < change["difference"] < change["high"] < 0
    assert change["p"] < 0.05
    assert change["p_holm"] == pytest.approx(2 * change["p"])  # two policies
    assert half["agreement"]["value"] == pytest.approx(20 / 36)
    assert found["policies"]["dense"]["difference"]["accuracy"]["difference"] == 0
    assert set(half["by_category"]) == {"random", "popular"}


def test_what_was_asked_otherwise_is_no_pair(runs: tuple[Path, Path], tmp_path: Path) -> None:
    other = run_of(tmp_path / "c", range(40), 0, question="What?")
    with pytest.raises(ValueError, match=f"no sample in common .40 {OTHERWISE}"):
        compare_runs(runs[0], other)
    alone = run_of(tmp_path / "d", range(40), 0, policies=("dense", "other"))
    assert list(compare_runs(runs[0], alone)["policies"]) == ["dense"]


def test_the_command_writes_what_it_prints(runs: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert main(["eval", "--compare", *map(str, runs), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert (out / "compare.md").read_text() in printed
    assert "**−44.4** (p = 0.0" in printed
    assert "36 samples about 18 images" in printed
    assert json.loads((out / "compare.json").read_text())["samples"] == 36
    assert main(["eval", "--compare", str(runs[0]), str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
    assert main(["eval", "--compare", *map(str, runs), "--data", "worlds", "--judge", "x"]) == 2
    assert "leave out --data, --judge" in capsys.readouterr().err


@pytest.mark.parametrize("width", [1440, 390])
def test_a_browser_shows_both(runs: tuple[Path, Path], tmp_path: Path, browser: Any, width: int) -> None:
    found = compare_runs(*runs)
    assert Compared(found).metrics[0].name == "accuracy"
    context = browser.new_context(viewport={"width": width, "height": 900})
    sheet = context.new_page()
    trouble: list[str] = []
    sheet.on("console", lambda message: trouble.append(message.text))
    sheet.on("pageerror", lambda error: trouble.append(str(error)))
    sheet.goto(write_comparison(found, tmp_path).as_uri())
    assert sheet.evaluate("document.documentElement.scrollWidth") == width
    row = sheet.locator("#overview tbody tr").nth(1).inner_text()
    assert "half" in row
    assert "−44.4" in row
    assert "worse" in row
    assert "4 samples only in the first run" in sheet.inner_text("header")
    assert not trouble
    context.close()
