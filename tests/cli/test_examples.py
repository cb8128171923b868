"""Every example runs as it stands, from an empty directory, and shows what its first lines promise."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


def run(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Its names, after it ran in `place` and wrote the images that its first lines promise."""
    monkeypatch.chdir(place)
    names = runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    for path in re.findall(r"examples-out/[\w./-]+\.png", names["__doc__"]):
        assert Image.open(place / path).width > 300, path
    return names


def test_an_image_is_asked_about_and_the_model_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run("01_image.py", tmp_path, monkeypatch)
    said = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines() if re.match(r"\w+: ", line))
    assert said["dense"].strip() == said["restored"].strip()
    assert made["report"].samples[0]["visual_tokens_kept"] == 64


def test_the_click_lands_on_the_button(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run("02_screenshot_click.py", tmp_path, monkeypatch)
    assert made["report"].tower["encoded"] < made["report"].tower["given"]
    assert made["sample"]["visual_tokens_kept"] == 28
    assert 0.55 < made["click"][0] < 0.79  # Save, in the bundled page
    assert 0.38 < made["click"][1] < 0.57


def test_answers_in_a_batch_are_those_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run("03_batch.py", tmp_path, monkeypatch)
    assert made["together"] == made["alone"]
    assert all(sample["visual_tokens_kept"] < sample["visual_tokens"] for sample in made["samples"])


def test_of_a_video_what_changes_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run("04_video.py", tmp_path, monkeypatch)
    per_step = [int(made["clip"].kept[made["clip"].coords[:, 0] == step].sum()) for step in range(made["steps"])]
    assert per_step[0] == 256
    assert all(0 < kept < 64 for kept in per_step[1:])


def test_a_method_of_ones_own_is_used_by_name(tmp_path: Path) -> None:
    """In a process of its own: names are registered for good."""
    words = [sys.executable, str(EXAMPLES / "05_own_method.py")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^stand_out:keep_ratio=0.25 +64 tokens: \w", done.stdout, re.MULTILINE)


def test_own_data_become_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run("06_own_data.py", tmp_path, monkeypatch)
    assert list(made["summary"]["policies"]) == ["dense", *made["POLICIES"]]
    assert made["summary"]["complete"]
    assert (tmp_path / "examples-out" / "run" / "report.html").exists()
    assert len(list((tmp_path / "examples-out" / "run" / "plots").glob("*.png"))) == 5


def test_a_saved_policy_comes_back_beside_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run("07_own_model.py", tmp_path, monkeypatch)
    assert made["loaded"] == made["policy"]


def test_the_notebook_runs_and_holds_no_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            assert cell["execution_count"] is None
            exec("".join(cell["source"]), names)
    assert len(names["answers"]) == 4
    assert "random" in capsys.readouterr().out


def test_they_are_short_and_listed() -> None:
    listed = re.findall(r"^\| \[(\S+)\]\(\1\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted([*SCRIPTS, "tour.ipynb"])
    for name in SCRIPTS:
        lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith('"""')
        assert 20 <= len(lines) <= 60, name
