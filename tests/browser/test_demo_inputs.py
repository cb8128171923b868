"""What the demo page takes from strangers: files, names, texts, models; and where it listens."""

from __future__ import annotations

import argparse
import importlib.util
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomllib
import torch
from PIL import Image

import vlmopt
from tests.support.broken import broken_tiff
from vlmopt.apps.page import inputs
from vlmopt.apps.page.inputs import received, title_of
from vlmopt.apps.page.jobs import escaped, sentence, told
from vlmopt.cli import demo
from vlmopt.cli.main import build_parser, main
from vlmopt.frames import load_video
from vlmopt.loading import load
from vlmopt.synthetic import clips

ROOT = Path(__file__).resolve().parents[2]


def packed(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.png", b"", "image is empty (0 bytes): a.png"),
        ("a.mp4", b"", "video is empty (0 bytes): a.mp4"),
        ("a.jpg", b"no image at all", "not an image: a.jpg"),
        ("a.png", packed(Image.new("RGB", (60, 60), "red"), "PNG")[:90], "corrupt or truncated: a.png"),
        ("a.mp4", b"no video at all", "a.mp4"),
        ("a.png", packed(Image.new("1", (9000, 9000)), "PNG"), "a.png has 9000 x 9000 pixels; at most 50 million"),
        ("a.pkl", b"cos\nsystem\n", "a.pkl is neither an image"),
        ("a", b"x", "a is neither an image"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_are_refused_in_a_sentence(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    """The sentence names the user's file, not ours, and nothing stays behind."""
    with pytest.raises(ValueError) as caught:
        received(name, content, tmp_path)
    assert says in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_image_at_which_the_decoder_itself_fails_is_refused(tmp_path: Path) -> None:
    content = broken_tiff(tmp_path / "b.tiff").read_bytes()
    with pytest.raises(ValueError, match=r"image is corrupt or truncated: a.tiff \(TypeError"):
        received("a.tiff", content, tmp_path)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MEGABYTES", 1)
    with pytest.raises(ValueError, match=r"big.png has 2 MB; at most 1 MB are taken"):
        received("big.png", bytes(2 * 2**20), tmp_path)


def test_odd_images_become_rgb_with_a_note(tmp_path: Path) -> None:
    red = Image.new("RGB", (40, 30), "red")
    deep = Image.fromarray(np.full((30, 40), 40000, np.uint16))
    frames = packed(red, "GIF", save_all=True, append_images=[Image.new("RGB", (40, 30), "blue")])
    clear = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    for content, ending, note in (
        (packed(red.convert("CMYK"), "JPEG"), "jpg", "CMYK"),
        (packed(deep, "PNG"), "png", "8 bits"),
        (frames, "gif", "2 frames, the first one"),
        (packed(clear, "PNG"), "png", "transparency"),
    ):
        given = received(f"odd.{ending}", content, tmp_path)
        assert given.images[0].mode == "RGB"
        assert given.images[0].size == (40, 30)
        assert note in " ".join(given.notes)


@pytest.mark.parametrize(
    "name", ["../../evil.png", "..\\..\\evil.png", "/etc/evil.png", "a\x00/../evil.png", "....//evil.png", "evil.png"]
)
def test_a_name_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    """Whatever the browser says a file is called, it lies in our folder under a name of ours."""
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    given = received(name, packed(Image.new("RGB", (40, 30), "red"), "PNG"), folder)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.parent == folder
    assert file.stem.isalnum()
    assert "evil" not in file.name
    assert given.title == "evil.png"
    assert title_of("x" * 500 + ".png") == "x" * inputs.TITLE
    assert title_of("") == title_of("\n/") == "upload"


def test_a_long_name_keeps_its_ending(tmp_path: Path) -> None:
    given = received("x" * 90 + ".png", packed(Image.new("RGB", (40, 30), "red"), "PNG"), tmp_path)
    assert given.title == "x" * inputs.TITLE
    clip = received("y" * 90 + ".MP4", clips.write_clip(tmp_path / "clip.mp4").read_bytes(), tmp_path).clip
    assert clip is not None
    assert clip.path.endswith(".mp4")


def test_texts_of_strangers_stay_texts() -> None:
    evil = "**b** <img src=x onerror=1> [l](javascript:x) $x$ :red[r] `c` # h"
    shown = escaped(evil)
    assert shown.replace("\\", "") == evil
    for sign in "*<>[]()$:`#":
        assert shown.count(sign) == shown.count("\\" + sign)
    assert told("`layer - 1` * 2") == "`layer - 1` \\* 2"


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    """A directory whose weights are a pickle is refused, and the code in it does not run."""
    model = tmp_path / "model"
    shutil.copytree(Path(vlmopt.__file__).parent / "checkpoints" / "tiny-qwen", model)
    (model / "model.safetensors").unlink()
    torch.save({"weight": Payload(tmp_path / "ran")}, model / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"weights of .* cannot be loaded"):
        load(str(model))
    assert not (tmp_path / "ran").exists()


def test_the_page_listens_on_this_machine_alone_and_limits_uploads() -> None:
    config = tomllib.loads((ROOT / "apps" / ".streamlit" / "config.toml").read_text())
    assert config["server"]["address"] == "localhost"
    assert config["server"]["maxUploadSize"] == inputs.MEGABYTES
    assert config["client"]["showErrorDetails"] == "none"
    assert config["server"]["showEmailPrompt"] is False  # a first start would wait for an address
    words = demo.command(build_parser().parse_args(["demo"]))
    assert "--server.address=localhost" in words
    assert words[4] == str(ROOT / "apps" / "demo.py")
    words = demo.command(build_parser().parse_args(["demo", "--server.address", "0.0.0.0", "--port", "80"]))
    assert {"--server.address=0.0.0.0", "--server.port=80"} <= set(words)


def test_without_streamlit_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "streamlit" else found(name))
    assert main(["demo"]) == 2
    assert "the demo needs streamlit: pip install streamlit, or vlmopt with its extra 'demo'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--port must be from 1 to 65535, got 0"):
        demo.command(argparse.Namespace(port=0, address="localhost", no_browser=True))


def test_the_generated_clip_changes_where_the_disc_is(tmp_path: Path) -> None:
    first, *_, last = (np.asarray(frame) for frame in clips.frames(count=4))
    rows, columns = np.nonzero((first != last).any(-1))
    assert rows.min() >= 224 // 3 - clips.RADIUS - 1
    assert rows.max() <= 224 // 3 + clips.RADIUS + 1
    assert columns.min() < 2 * clips.RADIUS
    assert columns.max() > 224 - 2 * clips.RADIUS
    video = load_video(clips.write_clip(tmp_path / "clip.mp4"), nframes=4)
    assert video.frames.shape == (4, 3, 336, 336)
    assert received("../c.mp4", (tmp_path / "clip.mp4").read_bytes(), tmp_path).clip is not None
    with pytest.raises(ValueError, match="at least 2 frames, got count=1"):
        clips.frames(count=1)


def test_errors_become_sentences() -> None:
    assert sentence(ValueError("a\nb")) == "a b"
    assert sentence(KeyError("x")) == "KeyError: 'x'"
    assert sentence(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")).startswith("Out of memory: CUDA")
    with pytest.raises(ValueError, match=r"Hub cannot be reached|not found"):
        load("nobody/nothing-at-all")
    with pytest.raises(ValueError, match="cannot be used here"):
        load("tiny-qwen", device="cuda:77")
