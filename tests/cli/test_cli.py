"""The command line as a user types it, on a checkpoint saved by the test and loaded by the real loading code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlmopt
from tests.support.media_files import write_video
from tests.support.stock import save_checkpoint
from vlmopt import loading
from vlmopt.cli import main as cli
from vlmopt.cli import run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="module")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 168, 3), dtype=np.uint8)).save(path)
    return path


def words(checkpoint: Path, image_file: Path, out: Path, /, **changes: Any) -> list[str]:
    options: dict[str, Any] = {
        "image": image_file,
        "question": "Where is Save?",
        "model": checkpoint,
        "policy": "uniform-25",
        "out": out,
        "max-new-tokens": 4,
        "repeats": 2,
        **changes,
    }
    given = [(f"--{name}", str(value)) for name, value in options.items() if value is not None]
    return ["run", *(word for pair in given for word in pair)]


def test_run_writes_a_table_an_image_and_a_result(
    checkpoint: Path, image_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(checkpoint, image_file, tmp_path / "out")) == 0
    shown = capsys.readouterr().out
    for text in ("dense", "optimized", "visual tokens", "time to first token", "KV cache, KiB", "peak memory"):
        assert text in shown
    assert "applied  uniform" in shown
    assert Image.open(tmp_path / "out" / "overlay.png").size[0] > 600
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    dense, other = result["runs"]["dense"], result["runs"]["optimized"]
    assert dense["visual_tokens"] == dense["visual_tokens_kept"] == 24
    assert other["visual_tokens_kept"] == 6
    assert other["ttft_ms"]["p20"] <= other["ttft_ms"]["median"] <= other["ttft_ms"]["p80"]
    assert other["report"]["policy"]["prune"] == [{"method": "uniform", "keep_ratio": 0.25}]
    assert not (tmp_path / "out" / "scores.png").exists()


def test_run_with_scores_a_policy_file_and_two_images(
    checkpoint: Path, image_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vlmopt.presets()["pospad-30"].save_pretrained(tmp_path / "policy")
    arguments = words(checkpoint, image_file, tmp_path / "out", policy=tmp_path / "policy")
    assert cli.main([*arguments, "--image", str(image_file)]) == 0
    assert "pospad" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())["runs"]["optimized"]
    assert result["visual_tokens"] == 48
    assert result["markers"] > 0
    assert (tmp_path / "out" / "scores.png").exists()


def test_run_on_a_video_says_which_reader_ran(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_video(tmp_path / "a.mp4", frames=12)
    assert cli.main(words(checkpoint, clip, tmp_path / "out", image=None, video=clip)) == 0
    shown = capsys.readouterr().out
    assert "frames of" in shown
    assert "read with" in shown
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["runs"]["dense"]["report"]["samples"][0]["items"][0]["kind"] == "video"


def test_dense_and_policy_dense_agree(checkpoint: Path, image_file: Path, tmp_path: Path) -> None:
    assert cli.main(words(checkpoint, image_file, tmp_path, policy="dense")) == 0
    runs = json.loads((tmp_path / "result.json").read_text())["runs"]
    assert runs["dense"]["answer"] == runs["optimized"]["answer"]


def test_seed_reaches_the_policy(checkpoint: Path, image_file: Path, tmp_path: Path) -> None:
    assert cli.main(words(checkpoint, image_file, tmp_path, policy="random-25", seed=7)) == 0
    assert json.loads((tmp_path / "result.json").read_text())["runs"]["optimized"]["report"]["policy"]["seed"] == 7


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"question": "  "}, "question is empty"),
        ({"image": None}, "--image FILE"),
        ({"image": "missing.png"}, "image not found: missing.png"),
        ({"image": "."}, "is a directory"),
        ({"image": __file__}, "not an image"),
        ({"video": "a.mp4"}, "not both"),
        ({"video": "missing.mp4", "image": None}, "video not found"),
        ({"policy": "unifrom-25"}, "did you mean 'uniform-25'"),
        ({"policy": "missing.json"}, "no policy file"),
        ({"max-new-tokens": 0}, "--max-new-tokens must be 1 or more"),
        ({"repeats": 0}, "--repeats must be 1 or more"),
        ({"fps": 0}, "--fps must be a number above 0"),
        ({"seed": -1}, "seed must be >= 0"),
        ({"out": __file__}, "is a file; give a directory"),
        ({"device": "nonsense"}, "device 'nonsense'"),
        ({"model": "tiny-qwn"}, "no Hub id"),
        ({"model": "."}, "directory without config.json"),
        ({"model": __file__}, "is a file; give the directory"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(
    checkpoint: Path,
    image_file: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert cli.main(words(checkpoint, image_file, tmp_path / "out", **changes)) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("vlmopt: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_newer_policy_and_impossible_layer_are_refused(
    checkpoint: Path, image_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer, deep = tmp_path / "newer.json", tmp_path / "deep.json"
    newer.write_text(json.dumps({"format": 99, "prune": []}))
    deep.write_text(json.dumps({"prune": [{"method": "uniform", "keep_ratio": 0.5, "layer": 99}]}))
    assert cli.main(words(checkpoint, image_file, tmp_path / "out", policy=newer)) == 2
    assert "Upgrade vlmopt" in capsys.readouterr().err
    assert cli.main(words(checkpoint, image_file, tmp_path / "out", policy=deep)) == 2
    assert "layer=99 does not exist" in capsys.readouterr().err


def test_a_text_model_is_refused(tmp_path: Path, image_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert cli.main(words(tmp_path, image_file, tmp_path / "out")) == 2
    assert "not a vision-language model" in capsys.readouterr().err


def test_a_hub_id_without_connection(image_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words(Path("someone/some-model"), image_file, tmp_path)) == 2
    assert "the Hub cannot be reached" in capsys.readouterr().err


def test_damaged_weights(
    checkpoint: Path, image_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    assert cli.main(words(tmp_path, image_file, tmp_path / "out")) == 2
    assert "weights of" in capsys.readouterr().err


def test_a_broken_torchvision_is_named(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(ValueError, match="install the build that matches torch"):
        loading.load(str(checkpoint))


def test_traceback_is_shown_when_asked_for() -> None:
    with pytest.raises(ValueError, match="question is empty"):
        cli.main(["run", "--question", "", "--image", "a.png", "--traceback"])


def test_worlds_writes_images_and_questions(tmp_path: Path) -> None:
    assert cli.main(["worlds", "--out", str(tmp_path), "--count", "1"]) == 0
    assert list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give --out DIR"),
        (["--out", "run", "--report", "run"], "give --out DIR"),
        (["--out", "run"], "give --data"),
        (["--report", "nowhere"], "nowhere is not a run directory"),
        (["--out", "run", "--data", "nowhere.jsonl"], "data not found: nowhere.jsonl"),
        (["--out", "run", "--data", "wolds"], "data not found: wolds (did you mean 'worlds'"),
        (["--out", "run", "--data", "worlds:pop"], "'worlds:pop' is unknown (did you mean 'worlds:pope'"),
        (["--out", "run", "--data", "worlds", "--policy", "uniform-26"], "did you mean 'uniform-25'"),
        (["--out", "run", "--data", "worlds", "--batch-size", "0"], "--batch-size must be 1 or more"),
    ],
)
def test_eval_refuses_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["eval", *options]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert said in shown[-1]
    assert shown[-1].startswith("vlmopt: error: ")


def test_eval_makes_a_report_and_makes_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    asked = ["--data", "worlds", "--limit", "4", "--policy", "uniform-50", "--device", "cpu", "--max-new-tokens", "4"]
    assert cli.main(["eval", *asked, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "uniform-50" in shown
    report = Path(shown.strip().rpartition("wrote ")[2])
    assert report.is_file()
    report.unlink()
    (out / "summary.json").unlink()
    assert cli.main(["eval", "--report", str(out)]) == 0
    assert report.is_file()
    assert (out / "summary.json").is_file()
