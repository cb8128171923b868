"""`vlmopt look`: both answers, the box, a drawing, JSON, and what is refused before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from vlmopt.cli.main import main


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("look") / "scene.png"
    image = Image.new("RGB", (224, 160), "white")
    ImageDraw.Draw(image).ellipse((150, 30, 190, 70), fill="red")
    image.save(path)
    return str(path)


def test_both_answers_and_a_drawing(scene: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "look.png"
    words = ["look", "--image", scene, "--question", "What colour is the circle?", "--device", "cpu"]
    assert main([*words, "--out", str(out), "--refine", "mask"]) == 0
    said = capsys.readouterr().out
    assert "first answer  'red'" in said
    assert "looked at" in said
    assert f"wrote {out}" in said
    assert Image.open(out).width > 224
    assert main([*words, "--out", str(out), "--json", "--look", "relative"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["first_answer"] == "red"
    assert len(told["box"]) == 4
    assert told["drawing"] == str(out)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--share", "0"], "--share must be a number above 0"),
        (["--most", "0"], "--most must be 1 or more"),
        (["--steps", "0"], "--steps must be 1 or more"),
        (["--look", "contras"], "did you mean 'contrast'"),
        (["--policy", "balancd"], "did you mean 'balanced'"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--question", " "], "the question is empty"),
        (["--general", ""], "the general instruction is empty"),
    ],
)
def test_refused(words: list[str], why: str, scene: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlmopt.loading.load", None)
        try:
            code = main(["look", "--image", scene, "--question", "What?", *words])
        except SystemExit as ended:  # argparse's own
            code = int(ended.code or 0)
    assert code == 2
    assert why in capsys.readouterr().err
