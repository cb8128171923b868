"""Runs in trouble: bad samples, failing policies, kills, full disks, and going on afterwards."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

import vlmopt
from tests.support.broken import broken_tiff
from tests.support.fixtures.evaluation import answers, lines, manifest_file, plain_image, settings
from vlmopt.evaluation import evaluate as module
from vlmopt.evaluation import runner
from vlmopt.evaluation.evaluate import evaluate
from vlmopt.evaluation.loading import load_data
from vlmopt.evaluation.processes import Processes, lock, processes
from vlmopt.evaluation.records import Record, Writer, read
from vlmopt.evaluation.summary import summarize
from vlmopt.loading import Loaded, load


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return manifest_file(tmp_path_factory.mktemp("data"), 2)


@pytest.fixture(scope="module", autouse=True)
def _load_once() -> Iterator[None]:
    loaded = load("tiny-qwen", device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load", lambda name, **_: loaded)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    evaluate(settings(data, run, "attention-25", batch_size=5))
    return run


def test_samples_that_cannot_be_asked_are_recorded_and_counted(tmp_path: Path) -> None:
    """A missing, a damaged and an impossibly narrow image among good ones."""
    plain_image(tmp_path / "good.png")
    plain_image(tmp_path / "narrow.png", (2000, 4))
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    broken_tiff(tmp_path / "frame.png")  # its decoder raises TypeError
    os.mkfifo(tmp_path / "pipe.png")
    names = ["good", "torn", "narrow", "good", "missing" * 60, "good", "frame", "pipe"]  # one too long for a file
    rows = [
        {"id": str(n), "image": f"{name}.png", "question": "Is anything red?", "answer": "yes"}
        for n, name in enumerate(names)
    ]
    evaluate(settings(lines(tmp_path / "m.jsonl", rows), tmp_path / "run", "uniform-50"))
    found = {record.key: record for record in read(tmp_path / "run")}
    for policy in ("dense", "uniform-50"):
        for n, name in enumerate(names):
            record = found[policy, str(n)]
            assert (record.error is None) == (name == "good") == (record.correct is not None)
    assert "corrupt or truncated" in found["dense", "1"].error
    assert "aspect ratio" in found["dense", "2"].error
    assert "image not found" in found["dense", "4"].error
    summary = summarize(tmp_path / "run")
    assert summary["complete"]
    assert "TypeError" in found["dense", "6"].error
    assert "image not found" in found["dense", "7"].error
    assert "2 of 8 samples miss their image" in summary["notes"][0]
    dense = summary["policies"]["dense"]
    assert (dense["n"], dense["errors"], dense["metrics"]["accuracy"]["n"]) == (8, 5, 3)


def failing(monkeypatch: pytest.MonkeyPatch, bad: Sequence[str], error: BaseException, after: int = 0) -> list[int]:
    """`generate` that fails on batches with a bad sample, from call number `after` on; returns sizes of the batches."""
    real, sizes = runner.generate, []

    def generate(loaded: Loaded, batch: Any, new_tokens: int) -> Any:
        sizes.append(len(batch.samples))
        if len(sizes) > after and any(sample.id in bad for sample in batch.samples):
            raise error
        return real(loaded, batch, new_tokens)

    monkeypatch.setattr(runner, "generate", generate)
    return sizes


def test_a_batch_that_fails_is_halved_until_the_culprit_is_alone(
    whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, ["0-colour"], torch.OutOfMemoryError("no room"))
    evaluate(settings(data, tmp_path / "run", batch_size=5))
    found = {record.id: record for record in read(tmp_path / "run")}
    assert found["0-colour"].error == "OutOfMemoryError: no room"
    assert found["0-colour"].correct is False
    assert {name: r.prediction for name, r in found.items() if name != "0-colour"} == {
        name: text for name, text in answers(whole).items() if name != "0-colour"
    }


def test_a_policy_that_always_fails_stops_the_run_and_may_be_asked_again(
    whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "FAILURES", 3)
    with monkeypatch.context() as patch:
        failing(patch, list(answers(whole)), RuntimeError("broken"))
        with pytest.raises(ValueError, match=r"policy dense failed on 3 samples in a row.*RuntimeError: broken"):
            evaluate(settings(data, tmp_path / "run"))
    assert [record.correct for record in read(tmp_path / "run")] == [False, False, False]
    evaluate(settings(data, tmp_path / "run", retry_errors=True))
    assert answers(tmp_path / "run") == answers(whole)


def stripped(rows: list[Record]) -> list[Record]:
    """Return rows without what differs from run to run, or is of a whole batch."""
    free = {"ms": None, "decode_tokens_per_s": None, "memory_bytes": None, "kv_bytes": None, "batch": 0, "call": ""}
    return [replace(row, **free) for row in rows]


def test_an_interrupted_run_goes_on_where_it_stopped(
    whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle, and the last line torn as a kill leaves it; the end is that of the whole run."""
    asked = settings(data, tmp_path / "run", "attention-25", batch_size=5)
    with monkeypatch.context() as patch:
        failing(patch, list(answers(whole)), KeyboardInterrupt(), after=4)
        with pytest.raises(KeyboardInterrupt):
            evaluate(asked)
    path = tmp_path / "run" / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    before = read(tmp_path / "run")
    assert 0 < len(before) < len(read(whole))
    calls = failing(monkeypatch, [], RuntimeError())
    evaluate(asked)
    assert stripped(read(tmp_path / "run")) == stripped(read(whole))
    assert [r for r in read(tmp_path / "run") if r.key in {b.key for b in before}] == sorted(
        before, key=lambda r: (r.index, ["dense", "attention-25"].index(r.policy))
    )
    assert 0 < len(calls) < 8
    calls.clear()
    evaluate(asked)
    assert not calls


def test_a_full_disk_stops_the_run_and_loses_nothing(
    whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, batches = Writer.append, []

    def append(self: Writer, rows: Any) -> None:
        batches.append(rows)
        if len(batches) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "append", append)
        with pytest.raises(OSError, match="No space left"):
            evaluate(settings(data, tmp_path / "run", batch_size=2))
    assert len(read(tmp_path / "run")) == 6
    evaluate(settings(data, tmp_path / "run", batch_size=2))
    assert answers(tmp_path / "run") == answers(whole)


def test_policies_may_be_added_and_nothing_else_may_change(whole: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    few = {"limit": 4}
    evaluate(settings(data, run, "uniform-50", source=few))
    evaluate(settings(data, run, "uniform-50", "attention-25", source=few))
    found = answers(run, "attention-25")
    assert found == {name: text for name, text in answers(whole, "attention-25").items() if name in found}
    assert len(json.loads((run / "environment.json").read_text())["starts"]) == 2
    before = (run / "samples.jsonl").read_bytes()
    vlmopt.presets()["uniform-25"].save_pretrained(tmp_path / "uniform-50")
    for changed, words in (
        (settings(data, run, "uniform-50", source=few), "holds answers of the policy 'attention-25': give it again"),
        (settings(data, run, str(tmp_path / "uniform-50"), "attention-25", source=few), "of the name 'uniform-50'"),
        (settings(data, run, "uniform-50", "attention-25", source=few, prompt="Say."), "prompt = '{question}', now"),
        (settings(data, run, "uniform-50", "attention-25", source={"limit": 3}), "digest = "),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate(changed)
    assert (run / "samples.jsonl").read_bytes() == before


def test_two_runs_do_not_share_a_directory(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with lock(tmp_path / "run" / ".lock.3"), pytest.raises(ValueError, match="another run is at work"):
        evaluate(settings(data, tmp_path / "run"))
    evaluate(settings(data, tmp_path / "run", source={"limit": 1}))


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    """By another process, on every platform; the file that stays is no lock."""
    holds = "import sys, time; from vlmopt.evaluation.processes import lock\n"
    holds += "with lock(__import__('pathlib').Path(sys.argv[1])) as had: print(had, flush=True); time.sleep(600)"
    path = tmp_path / ".lock.0"
    with subprocess.Popen([sys.executable, "-c", holds, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "True\n"
            with lock(path) as had:
                assert not had
        finally:
            holder.kill()
    with lock(path) as had:
        assert had


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "no locks"), NotImplementedError("no flock")])
def test_a_file_system_without_locks_is_worked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(FileLock, "_acquire", refuse)
    with lock(tmp_path / ".lock.0") as had:
        assert had


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 0}, "--batch-size must be 1 or more"),
        ({"maps": -1}, "--maps must be 0 or more"),
        ({"parser": "lenient"}, "--parser 'lenient' is unknown"),
        ({"units": "inches"}, "--points 'inches' is unknown"),
        ({"prompt": " "}, "--prompt is empty"),
        ({"device_map": "balanced"}, "--device-map 'balanced' is unknown"),
        ({"policies": ["uniform-26"]}, "unknown preset 'uniform-26'"),
        ({"policies": ["uniform-25", "uniform-25"]}, "the name 'uniform-25' is taken"),
        ({"model": "tiny-qwem"}, "did you mean 'tiny-qwen'"),
    ],
)
def test_refusals_leave_no_answers(data: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        evaluate(replace(settings(data, tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


def test_clicks_of_a_model_that_counts_in_nobody_knows_what_need_to_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before the weights are loaded; other questions need no units."""
    plain_image(tmp_path / "a.png")
    row = {"id": "1", "image": "a.png", "question": "Click it.", "box": [1, 1, 9, 9]}
    clicks, run = lines(tmp_path / "c.jsonl", [row]), tmp_path / "run"
    monkeypatch.setattr(module, "click_units", lambda config: None)
    monkeypatch.setattr(module, "load_model", lambda *_: pytest.fail("loaded"))
    asked = settings(clicks, run)
    asked = replace(asked, source=replace(asked.source, boxes="xyxy"))
    with pytest.raises(ValueError, match=r"give --points pixels \| .*'qwen2_5_vl'"):
        evaluate(asked)
    assert module.units_of(replace(asked, units="thousand"), load_data(asked.source)) == "thousand"
    words = lines(tmp_path / "w.jsonl", [{"id": "1", "image": "a.png", "question": "Red?", "answer": "yes"}])
    assert module.units_of(settings(words, run), load_data(settings(words, run).source)) == "pixels"


def test_one_replica_over_all_devices_and_several_processes_exclude_each_other(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def two(device: torch.device) -> Iterator[Processes]:
        yield Processes(0, 2, device, None)

    monkeypatch.setattr(module, "processes", two)
    with pytest.raises(ValueError, match="2 processes would need one each"):
        evaluate(settings(data, tmp_path / "run", device_map="auto"))


def test_a_process_that_does_not_see_the_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"process 1 of 2 does not see .*share"):
        Processes(1, 2, torch.device("cpu"), None).check_shared(tmp_path)


def test_processes_that_cannot_be_joined_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them would ask everything again."""
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched"), processes(torch.device("meta")):
        pass
