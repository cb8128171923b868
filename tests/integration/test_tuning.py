"""A whole search on a bundled checkpoint: what it returns and writes, what it refuses, that a kill loses nothing."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import vlmopt
from vlmopt.checkpoints import load_checkpoint
from vlmopt.cli.main import main
from vlmopt.evaluation.generation import generate
from vlmopt.evaluation.records import read
from vlmopt.synthetic.writing import write
from vlmopt.tuning.result import TuneResult
from vlmopt.tuning.timing import MEASURES
from vlmopt.tuning.wanted import Unresolvable

SPACE = [
    {"method": "div_prune", "keep_ratio": [0.6, 0.3]},
    {"method": "random", "keep_ratio": [0.5, 0.1]},
    "uniform:keep_ratio=0.3",
    {"method": "vision_zip", "keep_ratio": [0.5]},
]
BUDGET, LIMIT = 20.0, 75  # points, questions: small, so wide
PATIENCE = 300  # seconds


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load_checkpoint("tiny-qwen")


def tuned(loaded: tuple[Any, Any], out: Path, **changes: Any) -> TuneResult:
    options = {"budget": BUDGET, "objective": "tokens", "space": SPACE, "limit": LIMIT, **changes}
    return vlmopt.tune(*loaded, options.pop("data", "worlds"), out=out, **options)


@pytest.fixture(scope="module")
def found(loaded: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[TuneResult, Path]:
    out = tmp_path_factory.mktemp("tuned") / "run"
    return tuned(loaded, out), out


def test_the_outcome_is_confirmed_on_images_that_chose_nobody(found: tuple[TuneResult, Path]) -> None:
    result, out = found
    assert result.passed
    assert result.name != "dense"
    assert result.interval is not None
    assert result.difference is not None
    assert -BUDGET <= result.interval[0] <= result.difference <= result.interval[1]
    assert result.speedup > 1.2
    facts = json.loads((out / "tune.json").read_text())
    assert facts["images"] == {"search": 25, "holdout": 50}
    assert not facts["loyalty"]
    assert facts["marks"] == ["score"]  # captions are among the questions
    asked = {record.policy: set() for record in read(out)}
    for record in read(out):
        asked[record.policy].add(record.picture)
    tested = [one["policy"] for one in facts["tried"] if one["holdout"]]
    for one in facts["tried"]:
        pictures = asked.get(one["policy"], set())
        assert len(pictures) == (75 if one["policy"] in tested else 25 if one["selected_on"] else 0)
        assert one["policy"] == result.name or one["confirmed"] or one["why_not"]
    assert facts["categories"]
    worst, *_, best = [seen["difference"] for seen in facts["categories"].values()]
    assert worst <= best
    assert "at most 20 points" in str(result)


def test_the_policy_says_what_it_was_tuned_on(found: tuple[TuneResult, Path], loaded: tuple[Any, Any]) -> None:
    result, out = found
    policy = vlmopt.Policy.load(out / "policy.json")
    assert policy == result.policy
    assert policy.tuned is not None
    assert policy.tuned["model_type"] == "qwen2_5_vl"
    assert policy.tuned["budget"] == BUDGET
    other = replace(policy, tuned={**policy.tuned, "dtype": "bfloat16"})
    with pytest.warns(UserWarning, match="tuned on dtype bfloat16, not float32"), vlmopt.optimized(loaded[0], other):
        pass
    with pytest.raises(TypeError, match="tuned must be"):
        replace(policy, tuned="yes")


def test_going_on_with_a_finished_search_asks_nothing_and_writes_the_same(
    found: tuple[TuneResult, Path], loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    result, out = found
    again = Path(shutil.copytree(out, tmp_path / "again"))
    before = (again / "samples.jsonl").read_bytes()
    assert tuned(loaded, again).facts == result.facts
    assert (again / "samples.jsonl").read_bytes() == before
    assert (again / "tune.json").read_bytes() == (out / "tune.json").read_bytes()


def test_what_failed_is_asked_again_on_demand(
    found: tuple[TuneResult, Path], loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors whose cause is gone leave no trace; unless it is demanded, they stay and count as wrong."""
    result, out = found
    again = Path(shutil.copytree(out, tmp_path / "again"))
    failed = {"prediction": None, "correct": False, "error": "OutOfMemoryError: no room"}
    rows = [json.loads(text) for text in (again / "samples.jsonl").read_text().splitlines()]
    rows = [{**row, **failed} if row["policy"] == result.name else row for row in rows]
    (again / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (again / "times-ttft.json").write_text(json.dumps({result.name: {"failed": "OutOfMemoryError: no room"}}))
    assert tuned(loaded, Path(shutil.copytree(again, tmp_path / "as it is"))).name != result.name
    assert tuned(loaded, again, retry_errors=True).name == result.name
    assert (again / "tune.json").read_bytes() == (out / "tune.json").read_bytes()
    monkeypatch.setattr("vlmopt.tuning.timing.ROUNDS", 2)
    monkeypatch.setattr("vlmopt.tuning.timing.PROMPTS", 1)
    tried = tuned(loaded, again, objective="ttft", retry_errors=True).facts["tried"]
    assert any(one["policy"] == result.name and one["cost"] for one in tried)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("tune.json", '{"format": 1', "tune.json is damaged .* asks nothing twice"),
        ("tune.json", "[]", r"tune.json is damaged \(it holds \[\]\)"),
        ("tune.json", '{"format": 1}', "it lacks 'tried'"),
        ("front.json", "{}", "front.json is damaged"),
        ("environment.json", "", "environment.json is damaged"),
    ],
)
def test_a_report_of_damaged_files_names_them(
    found: tuple[TuneResult, Path], tmp_path: Path, name: str, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    again = Path(shutil.copytree(found[1], tmp_path / "again"))
    (again / name).write_text(text)
    assert main(["tune", "--report", str(again)]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_another_budget_on_the_same_hold_out_is_a_second_look(
    found: tuple[TuneResult, Path], loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    again = Path(shutil.copytree(found[1], tmp_path / "again"))
    notes = tuned(loaded, again, budget=30.0).facts["notes"]
    assert any("looked at before (budget 20 for tokens)" in note for note in notes)
    assert not any("looked at before" in note for note in found[0].facts["notes"])


def test_the_report_shows_it_in_one_file(found: tuple[TuneResult, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, out = found
    assert main(["tune", "--report", str(out)]) == 0
    assert "wrote" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    for text in ("vlmopt tune", "Finalists", "random:keep_ratio", "uniform:keep_ratio", "With confidence 95%"):
        assert text in page
    assert "http" not in page.replace("http-equiv", "")
    assert (out / "plots" / "front.png").stat().st_size > 5000


def test_timed_objectives_are_measured_in_rounds(
    found: tuple[TuneResult, Path], loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmopt.tuning.timing.ROUNDS", 2)
    monkeypatch.setattr("vlmopt.tuning.timing.PROMPTS", 1)
    again = Path(shutil.copytree(found[1], tmp_path / "again"))
    facts = tuned(loaded, again, objective="ttft").facts
    times = json.loads((again / "times-ttft.json").read_text())
    assert {one["policy"] for one in facts["tried"] if one["cost"]} == set(times)
    assert all(0 < cost["low"] <= cost["ratio"] <= cost["high"] for cost in times.values())


def test_who_cannot_be_timed_is_left_out_with_the_reason(
    found: tuple[TuneResult, Path], loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that did not fit were asked in halves; whole ones do not fit when time is taken, either."""

    def short_of_memory(one: Any, batches: Any) -> float:
        sample = generate(one, batches[0], 1).report.samples[0]
        kept = float(sample["visual_tokens_kept"] / sample["visual_tokens"])
        if kept == pytest.approx(0.6, abs=0.02):
            raise torch.OutOfMemoryError("tried to allocate")
        return kept

    monkeypatch.setattr("vlmopt.tuning.timing.ROUNDS", 2)
    monkeypatch.setitem(MEASURES, "ttft", short_of_memory)
    again = Path(shutil.copytree(found[1], tmp_path / "again"))
    for start in range(2):  # going on does not try again
        facts = tuned(loaded, again, objective="ttft").facts
        why = {one["policy"]: one["why_not"] for one in facts["tried"] if not one["cost"]}
        assert "cannot be timed: OutOfMemoryError: tried to allocate" in why["div_prune:keep_ratio=0.6"], start
        assert any(one["cost"] for one in facts["tried"])


def test_samples_without_answers_are_marked_by_loyalty(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    manifest = write(tmp_path / "worlds", 24, 77, 2, (112, 112), "scene")
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    keep = ("id", "image", "question")
    questions = tmp_path / "questions.jsonl"  # elsewhere than the images
    questions.write_text("".join(json.dumps({key: row[key] for key in keep}) + "\n" for row in rows))
    result = tuned(
        loaded, tmp_path / "run", data=questions, images=str(manifest.parent), budget=40.0, limit=None,
        space=["uniform:keep_ratio=0.8"], max_new_tokens=4,
    )  # fmt: skip
    assert result.facts["loyalty"]
    assert result.facts["marks"] == ["agreement"]
    assert any("loyalty, not accuracy" in note for note in result.facts["notes"])


def test_what_the_data_cannot_resolve_is_refused_with_the_images_that_would_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", "--data", "worlds", "--limit", "60", "--out", str(tmp_path / "run")]
    assert main([*words, "--budget", "1"]) == 3
    assert "should have 1855 images" in capsys.readouterr().err
    assert main([*words, "--budget", "0"]) == 3
    assert "cannot be confirmed on any number of images" in capsys.readouterr().err
    assert not (tmp_path / "run" / "samples.jsonl").exists()


def test_nothing_confirmed_is_dense_and_exit_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "space.json"
    space.write_text('["random:keep_ratio=0.02"]')
    words = ["tune", "--data", "worlds:scene", "--limit", "30", "--budget", "12", "--objective", "tokens"]
    words += ["--space", str(space), "--out", str(tmp_path / "run"), "--best-effort"]
    assert main(words) == 3
    assert "nothing was confirmed: policy.json is dense" in capsys.readouterr().out
    assert vlmopt.Policy.load(tmp_path / "run" / "policy.json") == vlmopt.Policy()
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"budget": 101}, ValueError, "0 to 100 points"),
        ({"budget": "1"}, TypeError, "number of points"),
        ({"objective": "tff"}, ValueError, "did you mean 'ttft'"),
        ({"confidence": 1.0}, ValueError, "confidence"),
        ({"space": []}, ValueError, "space is empty"),
        ({"space": ["fastvv:keep_ratio=0.1"]}, ValueError, "fastv"),
        ({"batch_size": 0}, ValueError, "batch-size"),
        ({"base": "nothing-of-this-name"}, ValueError, "unknown preset"),
        ({"space": [{"method": "unifrom", "keep_ratio": [0.5]}]}, ValueError, "entry 1 of the space.*did you mean"),
        ({"space": ["fastv:keep_ratio=0.5,layer=99"]}, ValueError, "none of 1 candidates can work on this model"),
        ({"boxes": "corners"}, ValueError, "--boxes 'corners' is unknown: choose from xyxy"),
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_is_asked(
    loaded: tuple[Any, Any], tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        tuned(loaded, tmp_path / "run", **changes)
    assert not (tmp_path / "run" / "samples.jsonl").exists()


def test_a_device_without_numbers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--data", "worlds", "--device", "meta", "--out", str(tmp_path / "run")]) == 2
    assert "device 'meta' holds no numbers" in capsys.readouterr().err


def test_a_dense_model_that_fails_is_said(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer failures than end a search must not look like a search that found nothing."""

    def broken(*given: Any) -> Any:
        raise RuntimeError("no kernel")

    with monkeypatch.context() as patch:
        patch.setattr("vlmopt.evaluation.runner.generate", broken)
        result = tuned(loaded, tmp_path / "run", limit=12, space=["uniform:keep_ratio=0.9"], best_effort=True)
    assert not result.passed
    (said,) = [note for note in result.facts["notes"] if "dense failed" in note]
    assert "RuntimeError: no kernel" in said


def test_too_few_images_are_an_error_of_their_own(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(Unresolvable, match="--best-effort"):
        tuned(loaded, tmp_path / "run", budget=1.0)


@pytest.mark.slow
def test_two_processes_one_killed_and_resumed_find_the_same(found: tuple[TuneResult, Path], tmp_path: Path) -> None:
    space, run = tmp_path / "space.json", tmp_path / "run"
    space.write_text(json.dumps(SPACE))
    words = f"""{sys.executable} -m accelerate.commands.accelerate_cli launch --multi_gpu --num_processes 2
        --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0 -m vlmopt tune
        --model tiny-qwen --data worlds --limit {LIMIT} --budget {BUDGET} --objective tokens --space {space}
        --device cpu --out {run}""".split()

    def launch() -> subprocess.Popen[str]:
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    first = launch()
    deadline = time.monotonic() + PATIENCE
    while sum(path.read_bytes().count(b"\n") for path in run.glob("samples*.jsonl")) < 60:
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = [p for p in psutil.Process(first.pid).children(recursive=True) if "tune" in p.cmdline()]
    workers[-1].send_signal(signal.SIGKILL)
    first.communicate(timeout=PATIENCE)
    assert first.returncode != 0
    assert not (run / "tune.json").exists()
    second = launch()
    shown = second.communicate(timeout=PATIENCE)[0]
    assert second.returncode == 0, shown
    assert (run / "tune.json").read_bytes() == (found[1] / "tune.json").read_bytes()
