"""Two processes of `accelerate launch`: one is killed with -9, the run goes on, nothing is lost, nothing is double."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.fixtures.evaluation import manifest_file
from vlmopt.evaluation.records import parts, read
from vlmopt.evaluation.request import load_request

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds


def launch(data: Path, out: Path) -> subprocess.Popen[str]:
    """`--multi_gpu` is what makes accelerate start several processes; on a machine without GPUs they share the CPU."""
    words = f"""{sys.executable} -m accelerate.commands.accelerate_cli launch --multi_gpu --num_processes 2
        --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0 {ROOT / "apps" / "evaluate.py"}
        --data {data} --policy uniform-50 --out {out} --device cpu --batch-size 1 --max-new-tokens 4 --maps 0""".split()
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def lines(run: Path) -> dict[str, int]:
    return {path.name: path.read_bytes().count(b"\n") for path in run.glob("samples*.jsonl")}


def whole_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


@pytest.mark.slow
def test_two_processes_one_killed_and_resumed(tmp_path: Path) -> None:
    run, data = tmp_path / "run", manifest_file(tmp_path / "data", 4)
    count = 2 * len(data.read_text().splitlines())  # two policies
    first = launch(data, run)
    deadline = time.monotonic() + PATIENCE
    while not (written := lines(run)).get("samples.00001.jsonl") or not written.get("samples.jsonl"):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = [p for p in psutil.Process(first.pid).children(recursive=True) if "evaluate.py" in " ".join(p.cmdline())]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    first.communicate(timeout=PATIENCE)
    assert first.returncode != 0
    before = {record.key: record for record in read(run)}
    assert 2 <= len(before) < count
    assert [path.name for path in parts(run)] == ["samples.00001.jsonl"]
    shares = [{(row["policy"], row["id"]) for row in whole_lines(path)} for path in sorted(run.glob("samples*.jsonl"))]
    assert len(shares) == 2
    assert not shares[0] & shares[1]

    second = launch(data, run)
    shown = second.communicate(timeout=PATIENCE)[0]
    assert second.returncode == 0, shown
    rows = (run / "samples.jsonl").read_text().splitlines()
    records = read(run)
    assert len(rows) == len(records) == len({record.key for record in records}) == count
    assert all(record.error is None for record in records)
    assert all(before[record.key] == record for record in records if record.key in before)
    assert not parts(run)
    places = [(record.index, record.policy != "dense") for record in records]
    assert places == sorted(places)
    assert list(load_request(run)["policies"]) == ["dense", "uniform-50"]
    assert (run / "summary.json").exists()
