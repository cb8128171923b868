"""Videos from disk: every odd file is handled or refused in one clear sentence."""

from __future__ import annotations

import importlib
import json
import sys
import types
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from tests.support.media_files import noise, write_video
from tests.support.stock import IMAGES
from vlmopt import video_readers
from vlmopt.frames import fit_size, load_video, resize_frames, video_inputs
from vlmopt.media import optional_module


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4")


def test_readers_agree(clip: Path) -> None:
    a, b = (load_video(clip, reader=reader, min_pixels=28 * 28) for reader in ("opencv", "pyav"))
    assert (a.reader, b.reader) == ("opencv", "pyav")
    assert a.indices == b.indices == (0, 7, 14, 22, 29, 36)
    assert a.frames.shape == (6, 3, 112, 168)
    assert torch.equal(a.frames, b.frames)
    assert a.sample_fps == pytest.approx(10 * 6 / 37)


def test_own_reader_says_why_it_ran(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmopt.frames.optional_module", lambda name: (None, f"no {name}"))
    video = load_video(clip)
    assert video.reader == "opencv"
    assert "qwen-vl-utils cannot be used (no qwen_vl_utils)" in video.notes[0]


@pytest.mark.parametrize("error", [KeyError("video_fps"), AssertionError("max_pixels"), RuntimeError("no decoder")])
def test_own_reader_takes_over_when_the_other_one_fails(clip: Path, monkeypatch: pytest.MonkeyPatch, error) -> None:
    def fetch_video(*args: Any, **kwargs: Any) -> Any:
        raise error

    other = types.SimpleNamespace(vision_process=types.SimpleNamespace(fetch_video=fetch_video))
    monkeypatch.setattr("vlmopt.frames.optional_module", lambda name: (other, ""))
    video = load_video(clip)
    assert video.reader == "opencv"
    assert type(error).__name__ in video.notes[0]


def test_pyav_reads_what_opencv_cannot(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = video_readers.optional_module
    monkeypatch.setattr(
        video_readers, "optional_module", lambda name: (None, "broken") if name == "cv2" else real(name)
    )
    monkeypatch.setattr("vlmopt.frames.optional_module", lambda name: (None, f"no {name}"))
    video = load_video(clip)
    assert video.reader == "pyav"
    assert "opencv: broken" in video.notes[-1]


def test_frames_are_those_of_the_file(clip: Path) -> None:
    capture, frames = cv2.VideoCapture(str(clip)), []
    while (read := capture.read())[0]:
        frames.append(torch.from_numpy(read[1][..., ::-1].copy()).permute(2, 0, 1))
    video = load_video(clip, nframes=4, reader="opencv")
    expected = resize_frames(torch.stack([frames[i] for i in video.indices]), *video.frames.shape[-2:])
    assert video.indices == (0, 12, 24, 36)
    assert torch.equal(video.frames, expected)


@pytest.mark.parametrize("claimed", [0, 20, 90])
def test_a_wrong_frame_count_in_the_header_does_no_harm(
    clip: Path, claimed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, stream = video_readers._READERS["opencv"]
    header = probe(clip)
    assert not isinstance(header, str)
    wrong = type(header)(header.fps, claimed)
    monkeypatch.setitem(video_readers._READERS, "opencv", (lambda file: wrong, stream))
    assert load_video(clip, reader="opencv").indices == (0, 7, 14, 22, 29, 36)


def test_a_time_range(clip: Path) -> None:
    video = load_video(clip, nframes=4, start=1.0, end=2.0, reader="opencv")
    assert video.indices[0] == 10
    assert video.indices[-1] == 20


def test_an_animated_gif_is_a_video(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (56, 56), (i * 60, 0, 0)) for i in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    assert load_video(tmp_path / "a.gif", nframes=4).frames.shape[0] == 4


@pytest.mark.parametrize("content", [b"", b"no video" * 99])
def test_bad_videos_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"empty|not a readable video"):
        load_video(path)
    with pytest.raises(FileNotFoundError, match="video not found"):
        load_video(tmp_path / "b.mp4")


def test_a_truncated_video_is_refused(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(clip.read_bytes()[:2000])
    with pytest.raises(ValueError, match="not a readable video"):
        load_video(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"fps": 1.0, "nframes": 4}, "not both"),
        ({"nframes": 200}, "cannot sample 200"),
        ({"nframes": 0}, "cannot sample 0"),
        ({"start": 9.0}, "holds 0 of"),
        ({"start": float("nan")}, "start must be a finite number, got nan"),
        ({"end": float("inf")}, "end must be a finite number, got inf"),
        ({"fps": float("nan")}, "fps must be a finite number, got nan"),
        ({"reader": "magic"}, "unknown video reader"),
        ({"min_pixels": 9999, "max_pixels": 99}, "at least min_pixels"),
    ],
)
def test_bad_video_settings_are_refused(clip: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load_video(clip, **settings)


@pytest.mark.parametrize("reader", ["auto", "opencv", "pyav"])
def test_a_single_frame_is_a_video_of_one(tmp_path: Path, reader: str) -> None:
    clip = write_video(tmp_path / "a.mp4", frames=1)
    video = load_video(clip, reader=reader)
    assert (video.indices, video.frames.shape[0]) == ((0,), 1)
    inputs = video_inputs(video.frames)
    assert inputs["video_grid_thw"][0, 0] == 1
    assert load_video(clip, min_frames=2, max_frames=2).indices == (0,)
    with pytest.raises(ValueError, match="cannot sample 8 frames"):
        load_video(clip, nframes=8)


def test_a_range_may_hold_one_frame(clip: Path) -> None:
    assert load_video(clip, start=1.0, end=1.05, reader="opencv").indices == (10,)


@pytest.mark.parametrize("reader", ["auto", "opencv", "pyav"])
def test_of_a_video_cut_in_half_the_rest_is_read(tmp_path: Path, reader: str) -> None:
    """The header claims 37 frames; PyAV raises behind the last whole one, OpenCV stops."""
    whole = write_video(tmp_path / "a.avi", fourcc="MJPG").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    video = load_video(tmp_path / "cut.avi", reader=reader)
    assert 10 < video.indices[-1] < 20
    assert f"{video.indices[-1] + 1} of the 37 frames that the file claims can be read" in video.notes[-1]


@pytest.mark.parametrize("claimed", [0, 1, 37])
def test_the_reader_that_reads_more_takes_over(clip: Path, monkeypatch: pytest.MonkeyPatch, claimed: int) -> None:
    """OpenCV finds one frame where PyAV finds 37."""
    probe, stream = video_readers._READERS["opencv"]
    header = replace(probe(clip), frames=claimed)  # type: ignore[type-var]
    monkeypatch.setitem(video_readers._READERS, "opencv", (lambda file: header, lambda file: islice(stream(file), 1)))
    video = load_video(clip)
    assert (video.reader, video.indices) == ("pyav", (0, 7, 14, 22, 29, 36))


def test_whatever_a_video_decoder_raises_the_next_one_reads(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path) -> Any:
        raise TypeError("no width")

    monkeypatch.setitem(video_readers._READERS, "opencv", (fail, fail))
    assert load_video(clip).reader == "pyav"
    monkeypatch.setitem(video_readers._READERS, "pyav", (fail, fail))
    with pytest.raises(ValueError, match=r"not a readable video: .*clip.mp4 .*opencv: TypeError: no width; pyav"):
        load_video(clip)


# Patches


@pytest.mark.parametrize(("patch", "merge"), [(14, 2), (16, 2), (14, 1)])
def test_a_still_repeated_twice_gives_the_patches_of_the_image(patch: int, merge: int, tmp_path: Path) -> None:
    settings = {**IMAGES, "patch_size": patch, "merge_size": merge, "do_resize": False}
    del settings["processor_class"]
    image = noise((patch * merge * 4, patch * merge * 3))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    expected = processor(images=[image], return_tensors="pt")
    frames = torch.from_numpy(np.array(image)).permute(2, 0, 1).expand(2, -1, -1, -1)
    made = video_inputs(frames, patch_size=patch, merge_size=merge)
    assert torch.equal(made["video_grid_thw"], expected["image_grid_thw"])
    assert torch.allclose(made["pixel_values_videos"], expected["pixel_values"], atol=1e-6)


def test_frames_pair_up_in_time_and_the_last_is_repeated() -> None:
    frames = torch.arange(3).view(3, 1, 1, 1).expand(3, 3, 28, 28) * 50
    made = video_inputs(frames, image_mean=(0, 0, 0), image_std=(1, 1, 1))
    assert made["video_grid_thw"].tolist() == [[2, 2, 2]]
    pixels = made["pixel_values_videos"].view(2, 4, 3, 2, 14 * 14)[:, 0, 0, :, 0] * 255
    assert pixels.tolist() == [[0.0, 50.0], [100.0, 100.0]]


def test_frames_that_do_not_fit_the_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="divisible by 28"):
        video_inputs(torch.zeros(2, 3, 28, 30))


# qwen-vl-utils


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real qwen-vl-utils on a stand-in for the few names it takes from torchvision."""
    names = ["torchvision", "torchvision.io", "torchvision.transforms", "torchvision.transforms.functional"]
    root, io, transforms, functional = (types.ModuleType(name) for name in names)
    root.io, root.transforms, root.__version__ = io, transforms, "0.20.0"  # type: ignore[attr-defined]
    transforms.functional = functional  # type: ignore[attr-defined]
    transforms.InterpolationMode = types.SimpleNamespace(BICUBIC="bicubic")  # type: ignore[attr-defined]
    functional.resize = lambda video, size, interpolation, antialias: resize_frames(video, *size)  # type: ignore[attr-defined]

    def read_video(path: str, **_: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
        capture, frames = cv2.VideoCapture(path), []
        while (read := capture.read())[0]:
            frames.append(torch.from_numpy(read[1][..., ::-1].copy()).permute(2, 0, 1))
        return torch.stack(frames), torch.empty(0), {"video_fps": capture.get(cv2.CAP_PROP_FPS)}

    io.read_video = read_video  # type: ignore[attr-defined]
    for name, module in zip(names, (root, io, transforms, functional), strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("qwen_vl_utils", "qwen_vl_utils.vision_process"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("qwen_vl_utils").vision_process
    for name in ("qwen_vl_utils", "qwen_vl_utils.vision_process"):
        sys.modules.pop(name, None)


def test_frame_counts_are_those_of_qwen_vl_utils(reference: Any) -> None:
    for total in (4, 5, 17, 37, 900, 5000):
        for rate in (8.0, 23.976, 60.0):
            for wish in ({}, {"fps": 0.5}, {"fps": 7.5, "min_frames": 3, "max_frames": 31}, {"nframes": 4}):
                expected = reference.smart_nframes(dict(wish), total, rate)
                assert video_readers.count_frames(total, rate, **wish) == expected, (total, rate, wish)


def test_sizes_are_those_of_qwen_vl_utils(reference: Any) -> None:
    for height, width in ((112, 160), (1080, 1920), (720, 405), (28, 2800), (5, 5)):
        for factor, low, high in ((28, 128, 768), (32, 128, 768), (14, 4, 300)):
            wanted = reference.smart_resize(height, width, factor, low * factor**2, high * factor**2)
            assert fit_size(height, width, factor, low * factor**2, high * factor**2) == wanted


@pytest.mark.parametrize("settings", [{}, {"fps": 1.0}, {"nframes": 6}, {"max_pixels": 28 * 28 * 130}])
def test_tensors_are_those_of_qwen_vl_utils(reference: Any, clip: Path, settings: dict[str, Any]) -> None:
    own, theirs = load_video(clip, reader="opencv", **settings), load_video(clip, **settings)
    direct = reference.fetch_video({"video": str(clip), **settings})
    assert (own.reader, theirs.reader) == ("opencv", "qwen-vl-utils")
    assert own.indices == theirs.indices
    assert own.sample_fps == pytest.approx(theirs.sample_fps)
    assert torch.equal(own.frames, theirs.frames)
    assert torch.equal(own.frames, direct)


def test_a_broken_torchvision_counts_as_absent(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("torchvision", "qwen_vl_utils", "qwen_vl_utils.vision_process"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module, why = optional_module("torchvision")
    assert module is None
    assert "nms does not exist" in why
    video = load_video(clip)
    assert video.reader == "opencv"
    assert "nms does not exist" in video.notes[0]
