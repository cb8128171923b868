"""What the README shows runs, and what it lists exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

import vlmopt
from tests.support.stock import save_checkpoint
from vlmopt.methods import describe

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_quickstart_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quickstart, second = blocks()[:2]
    checkpoint = save_checkpoint(tmp_path / "model")
    code = re.sub(r'name = ".*"', f"name = {str(checkpoint)!r}", quickstart)
    # The one change: the processor of such a checkpoint needs torchvision in AutoProcessor.
    code = re.sub(r"model = Auto.*\nprocessor = Auto.*", "model, processor = vlmopt.load_checkpoint(name)", code)
    assert "load_checkpoint" in code
    Image.new("RGB", (112, 112), "white").save(tmp_path / "page.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    exec(second.replace("layer=8", "layer=3"), names)
    assert "uniform" in capsys.readouterr().out


def test_methods_presets_and_commands_exist() -> None:
    table = TEXT.split("## Methods")[1].split("## Families")[0]
    ours = {row["name"] for row in describe() if row["package"] == "vlmopt"}
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == ours
    for preset in re.findall(r"(?:--policy|policy show) ([\w-]+-\d+)", TEXT):
        assert preset in vlmopt.presets()


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("http") or (ROOT / target).exists(), target
