"""Open answers marked by a command of the user's own."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.report_runs import record, write_run
from vlmopt.cli.eval import finish
from vlmopt.evaluation.judge import judge, load
from vlmopt.evaluation.summary import summarize

SCRIPT = """
import json, sys
log = open(sys.argv[1], "a")
for line in sys.stdin:
    asked = json.loads(line)
    log.write(asked["answer"] + "\\n")
    print(json.dumps({"score": float(asked["answer"] in asked["reference"])}))
"""


def command(tmp_path: Path, script: str = SCRIPT, *more: str) -> str:
    path = tmp_path / "judge.py"
    path.write_text(script)
    return shlex.join([sys.executable, str(path), str(tmp_path / "log.txt"), *more])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Twelve open answers of two policies; half says something else on a third of them."""
    facts: dict[str, Any] = {"kind": "open", "correct": None, "metrics": {}, "answer": ["red"], "image": None}
    rows = [
        record(sample, policy, prediction="red" if policy == "dense" or sample % 3 else "blue", **facts)
        for sample in range(12)
        for policy in ("dense", "half")
    ]
    return write_run(tmp_path / "run", rows, ("dense", "half"))


def test_open_answers_are_marked_each_once(run: Path, tmp_path: Path) -> None:
    assert "judged" not in summarize(run)["policies"]["dense"]["metrics"]
    said = command(tmp_path)
    assert judge(run, said) == 12 + 4  # what both said is judged once
    assert judge(run, said) == 0
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 16
    summary = summarize(run)
    assert (summary["judge"], summary["primary"]) == (said, "judged")
    values = {name: one["metrics"]["judged"]["value"] for name, one in summary["policies"].items()}
    assert values == {"dense": 1.0, "half": pytest.approx(2 / 3)}
    assert summary["policies"]["half"]["versus_dense"]["judged"]["difference"] == pytest.approx(-1 / 3)
    assert judge(run, command(tmp_path, SCRIPT, "another")) == 16


def test_the_report_names_the_judge(run: Path, tmp_path: Path, capsys: Any) -> None:
    finish(run, command(tmp_path))
    assert "judged 16 answers" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert "Judged right, %" in page
    assert "Judge of open answers" in page


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; sys.exit('no key')", "failed with code 1: no key"),
        ("print(1)", "printed 1 lines for 16 answers"),
        ("import sys\nfor line in sys.stdin: print('good')", "printed 'good'; expected a number"),
        ("import sys\nfor line in sys.stdin: print(7)", "printed '7'; expected a number"),
    ],
)
def test_a_judge_that_cannot_is_refused(run: Path, tmp_path: Path, script: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        judge(run, command(tmp_path, script))
    assert load(run) == (None, {})


def test_no_command_and_a_damaged_file(run: Path) -> None:
    with pytest.raises(ValueError, match="--judge is empty"):
        judge(run, " ")
    with pytest.raises(ValueError, match="cannot be run"):
        judge(run, "/no/such/judge")
    (run / "judged.jsonl").write_text(json.dumps({"other": 1}) + "\n")
    with pytest.raises(ValueError, match=r"judged\.jsonl is damaged"):
        summarize(run)
