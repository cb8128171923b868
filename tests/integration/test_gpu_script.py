"""The script for a GPU runs here whole on toy shapes, with nothing installed that such a machine may lack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LACKING = ("shtab", "qwen_vl_utils", "streamlit", "altair", "playwright", "rapidfuzz", "peft")
BLOCK = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {LACKING!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def start(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a user does, on one thread, with packages taken away."""
    (out / "sitecustomize.py").write_text(BLOCK)
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu" / "run.py"), "--toy", "--out", str(out), *words]
    given = {**os.environ, "PYTHONPATH": str(out), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=out, env=given, check=False)


def test_every_unit_runs_and_is_run_once(tmp_path: Path) -> None:
    done = start(tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = [json.loads(text) for text in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert {line["unit"].partition("/")[0] for line in lines} == {"correct", "pruned", "sparse", "screens", "published"}
    assert not [line for line in lines if "error" in line or not line.get("right", True)]
    assert all(line["toy"] and line["machine"]["torch"] for line in lines)

    kept = lines[1:]
    (tmp_path / "gpu.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    again = start(tmp_path, "--stages", lines[0]["unit"].partition("/")[0])
    assert again.returncode == 0, again.stderr[-4000:]
    after = [json.loads(text) for text in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert after[: len(kept)] == kept
    assert [line["unit"] for line in after[len(kept) :]] == [lines[0]["unit"]]  # what was lost, and nothing else
