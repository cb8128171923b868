"""Read videos as frames, and make Qwen-VL pixel patches of frames, without torchvision.

Sampling and sizes follow qwen-vl-utils (an even number of evenly spaced frames, sides divisible by patch * merge,
a pixel budget per frame), so that both give the same tensors. Its own reader runs where torchvision imports; else
OpenCV, else PyAV.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .media import optional_module
from .paths import check_file
from .video_readers import decode_sampled

READERS = ("auto", "qwen-vl-utils", "opencv", "pyav")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_ASPECT = 200


@dataclass(frozen=True)
class Video:
    """Sampled and resized frames of a video file."""

    frames: Tensor  # fp32 [t, 3, h, w], RGB, 0-255; t even or 1, h and w divisible by patch_size * merge_size
    fps: float  # frames per second of the file
    sample_fps: float  # frames per second of `frames`
    indices: tuple[int, ...]  # which frames of the file
    reader: str  # "qwen-vl-utils" | "opencv" | "pyav"
    notes: tuple[str, ...] = ()


def load_video(
    path: str | os.PathLike[str],
    *,
    fps: float | None = None,
    nframes: int | None = None,
    min_frames: int = 4,
    max_frames: int = 768,
    start: float | None = None,
    end: float | None = None,
    patch_size: int = 14,
    merge_size: int = 2,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    reader: str = "auto",
) -> Video:
    """Read `nframes` frames, or `fps` of them per second (default 2), between `start` and `end` seconds.

    `min_pixels` and `max_pixels` bound one frame; they default to 128 and 768 tokens of (patch * merge)² pixels.
    A video, or a range, of one frame gives that frame. Of a truncated file the frames that can be read are returned,
    and a note says so.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: a bad path.
        ValueError: everything else: an empty or unreadable file, settings out of range, an unknown reader.
    """
    if fps is not None and nframes is not None:
        raise ValueError(f"give either fps or nframes, not both (got fps={fps}, nframes={nframes})")
    if reader not in READERS:
        raise ValueError(f"unknown video reader {reader!r}; choose one of {', '.join(READERS)}")
    for name, value in (("fps", fps), ("start", start), ("end", end)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}; leave it out for the default")
    file = check_file(path, "video")
    factor = patch_size * merge_size
    low = min_pixels if min_pixels is not None else 128 * factor**2
    high = max_pixels if max_pixels is not None else max(768 * factor**2, low)
    wish = {"fps": fps, "nframes": nframes, "min_frames": min_frames, "max_frames": max_frames}
    notes: list[str] = []
    if reader in ("auto", "qwen-vl-utils"):
        request = {"video_start": start, "video_end": end, "min_pixels": low, "max_pixels": high, **wish}
        if nframes is not None:
            del request["min_frames"], request["max_frames"]
        video, why = _with_qwen_vl_utils(file, {k: v for k, v in request.items() if v is not None}, factor)
        if video is not None:
            return video
        if reader == "qwen-vl-utils":
            raise ValueError(f"the reader 'qwen-vl-utils' cannot be used ({why}); use reader='auto'")
        notes.append(f"own frame reader: qwen-vl-utils cannot be used ({why})")
    raw = decode_sampled(file, ("opencv", "pyav") if reader == "auto" else (reader,), wish, start, end)
    height, width = fit_size(raw.frames.shape[-2], raw.frames.shape[-1], factor, low, high)
    frames = resize_frames(raw.frames, height, width)
    return Video(frames, raw.fps, raw.sample_fps, raw.indices, raw.reader, (*notes, *raw.notes))


def fit_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Return the nearest size, aspect kept, with sides divisible by `factor` and area in min_pixels..max_pixels."""
    if max_pixels < min_pixels:
        raise ValueError(f"max_pixels ({max_pixels}) must be at least min_pixels ({min_pixels})")
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise ValueError(f"a frame of {width}x{height} is too narrow: one side may be {MAX_ASPECT} times the other")
    h, w = (max(factor, round(side / factor) * factor) for side in (height, width))
    if h * w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        h, w = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif h * w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        h, w = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return h, w


def resize_frames(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize uint8 [t, 3, H, W] to fp32 [t, 3, height, width], 0-255, by antialiased bicubic; round values."""
    if frames.shape[-2:] == (height, width):
        return frames.float()
    out = F.interpolate(frames.float(), (height, width), mode="bicubic", align_corners=False, antialias=True)
    return out.clamp(0, 255).round()


def video_inputs(
    frames: Tensor,
    *,
    patch_size: int = 14,
    temporal_patch_size: int = 2,
    merge_size: int = 2,
    image_mean: Sequence[float] = CLIP_MEAN,
    image_std: Sequence[float] = CLIP_STD,
) -> dict[str, Tensor]:
    """Make model-ready patches of one video for the Qwen-VL families.

    `frames` [t, 3, h, w], values 0-255, h and w divisible by patch_size * merge_size; the last frame is repeated
    until t is divisible by temporal_patch_size. Returns pixel_values_videos fp32 [t'·h'·w', 3·T·p·p], patches in
    the order of the merge blocks, and video_grid_thw Long[1, 3] with (t', h', w') before merging.
    """
    t, channels, height, width = frames.shape
    block = patch_size * merge_size
    if height % block or width % block:
        raise ValueError(f"frames of {width}x{height} pixels: both sides must be divisible by {block}")
    mean, std = (torch.tensor(v, dtype=torch.float32).view(1, channels, 1, 1) for v in (image_mean, image_std))
    pixels = (frames.float() / 255.0 - mean) / std
    if missing := -t % temporal_patch_size:
        pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
    grid_t, grid_h, grid_w = pixels.shape[0] // temporal_patch_size, height // patch_size, width // patch_size
    cells = pixels.view(
        grid_t, temporal_patch_size, channels,
        grid_h // merge_size, merge_size, patch_size, grid_w // merge_size, merge_size, patch_size,
    )  # fmt: skip
    patches = cells.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(grid_t * grid_h * grid_w, -1)
    return {"pixel_values_videos": patches.contiguous(), "video_grid_thw": torch.tensor([[grid_t, grid_h, grid_w]])}


def _with_qwen_vl_utils(file: Path, request: dict[str, Any], factor: int) -> tuple[Video | None, str]:
    module, why = optional_module("qwen_vl_utils")
    if module is None:
        return None, why
    if factor % 2:
        return None, f"it needs an even patch_size * merge_size, not {factor}"
    try:
        (frames, about), sample_fps = module.vision_process.fetch_video(
            {"video": str(file), **request},
            image_patch_size=factor // 2,
            return_video_sample_fps=True,
            return_video_metadata=True,
        )
    except Exception as error:  # whatever its decoders raise, our own readers are tried next
        return None, f"{type(error).__name__}: {error}"
    indices = tuple(int(i) for i in about["frames_indices"])
    return Video(frames.float(), float(about["fps"]), float(sample_fps), indices, "qwen-vl-utils"), ""
