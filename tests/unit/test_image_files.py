"""Images from disk: every odd file is handled or refused in one clear sentence."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from tests.support.broken import broken_tiff
from tests.support.media_files import noise
from vlmopt import Policy
from vlmopt.calibration import Profile
from vlmopt.evaluation.boxes import image_size
from vlmopt.frames import load_video
from vlmopt.head_patterns import HeadPatterns
from vlmopt.media import load_image, readable


def test_rgb_image_is_read_as_it_is(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded.image.mode == "RGB"
    assert loaded.notes == ()
    assert np.array_equal(np.asarray(loaded.image), np.asarray(noise()))


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (None, FileNotFoundError, "image not found"),
        ("directory", IsADirectoryError, "is a directory"),
        (b"", ValueError, "empty"),
        (b"no image at all" * 9, ValueError, "not an image"),
    ],
)
def test_bad_images_are_refused(tmp_path: Path, content: Any, error: type[Exception], says: str) -> None:
    path = tmp_path / "a.png"
    if content == "directory":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=says) as caught:
        load_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tiff"])
def test_truncated_images_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise((200, 200)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"corrupt or truncated|not an image"):
        load_image(path)


@pytest.mark.parametrize("error", [TypeError("Missing dimensions"), struct.error("unpack"), KeyError(256)])
def test_whatever_a_decoder_raises_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(self: Any) -> None:
        raise error

    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(PngImageFile, "load", load)
    with pytest.raises(ValueError, match=f"corrupt or truncated: .*a.png .*{type(error).__name__}"):
        load_image(tmp_path / "a.png")


def test_a_frame_without_a_width_is_left_out_and_counted(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png")
    noise().save(tmp_path / "c.png")
    files = [tmp_path / "a.png", broken_tiff(tmp_path / "b.tiff"), tmp_path / "c.png", tmp_path / "none.png"]
    good, bad = readable(files, 2)
    assert good == [files[0], files[2]]
    assert list(bad) == [files[1]]
    assert str(files[1]) in bad[files[1]]
    assert image_size(files[1]) in (None, (40, 30))


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for read in (load_image, load_video, Policy.load, Profile.load, HeadPatterns.load):
        with pytest.raises(ValueError, match="not a regular file"):
            read(str(tmp_path / "pipe.png"))
    with pytest.raises(ValueError, match="not a regular file"):
        load_image("/dev/zero")
    assert image_size(tmp_path / "pipe.png") is None


def test_more_pixels_than_allowed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise().save(tmp_path / "a.png")
    monkeypatch.setattr("vlmopt.media.MAX_PIXELS", 100)
    with pytest.raises(ValueError, match="too large"):
        load_image(tmp_path / "a.png")


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    half = noise()
    half.putalpha(Image.new("L", half.size, 0))
    half.save(tmp_path / "a.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "p.png", transparency=1)
    for name in ("a.png", "p.png"):
        loaded = load_image(tmp_path / name)
        assert loaded.image.getextrema() == ((255, 255),) * 3
        assert "white" in loaded.notes[0]


def test_palette_grey_and_cmyk_become_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (8, 8), (200, 10, 10))
    red.quantize(4).save(tmp_path / "p.png")
    red.convert("L").save(tmp_path / "l.png")
    red.convert("CMYK").save(tmp_path / "c.tiff")
    assert load_image(tmp_path / "p.png").image.getpixel((0, 0)) == (200, 10, 10)
    assert load_image(tmp_path / "l.png").image.mode == "RGB"
    cmyk = load_image(tmp_path / "c.tiff")
    assert cmyk.image.getpixel((0, 0)) == (200, 10, 10)
    assert cmyk.notes == ("converted from CMYK",)


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        (np.array([[0, 32768], [65535, 256]], np.uint16), "png"),
        (np.array([[0.0, 0.5], [1.0, 1 / 256]], np.float32), "tiff"),
        (np.array([[0, 32768], [65535, 256]], np.int32), "tiff"),
    ],
)
def test_deep_samples_are_scaled_not_clipped(tmp_path: Path, values: np.ndarray, suffix: str) -> None:
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    loaded = load_image(tmp_path / f"a.{suffix}")
    assert np.asarray(loaded.image)[..., 0].tolist() == [[0, 128], [255, 1]]
    assert "8 bits" in loaded.notes[0]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    noise((60, 40)).save(tmp_path / "a.png", exif=exif)
    assert load_image(tmp_path / "a.png").image.size == (40, 60)


def test_animation_gives_its_first_frame_and_says_so(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    loaded = load_image(tmp_path / "a.gif")
    assert loaded.image.getpixel((0, 0)) == (255, 0, 0)
    assert loaded.notes == ("3 frames, the first one is used",)
