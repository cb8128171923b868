"""Evenly spaced frames of a video file, decoded with OpenCV or PyAV; neither is imported before it is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .media import optional_module

Fetch = Callable[[], np.ndarray]
"""Converts the frame the stream stands on to uint8 [h, w, 3] RGB; skipped frames are never converted."""
Stream = Callable[[Path], Iterator[Fetch]]


@dataclass(frozen=True)
class RawFrames:
    """Frames as they lie in the file: uint8 [t, 3, H, W], RGB."""

    frames: Tensor
    fps: float
    sample_fps: float
    indices: tuple[int, ...]
    reader: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Header:
    fps: float
    frames: int  # what the container claims; 0 if it does not say


def decode_sampled(
    file: Path, readers: Sequence[str], wish: Mapping[str, Any], start: float | None, end: float | None
) -> RawFrames:
    """Sample a video with the first reader that can open it. `wish` holds the arguments of `count_frames`.

    Raises ValueError if none can, or if the file holds too few frames.
    """
    reasons: list[str] = []
    for reader in readers:
        probe, stream = _READERS[reader]
        header = probe(file)
        if isinstance(header, str):
            reasons.append(f"{reader}: {header}")
            continue
        notes: list[str] = []
        if reasons:
            notes.append(f"read with {reader} ({'; '.join(reasons)})")
        rate = header.fps
        if not (math.isfinite(rate) and rate > 0):
            rate = 24.0
            notes.append("the file states no frame rate; 24 per second assumed")
        total = header.frames if header.frames > 0 else sum(1 for _ in stream(file))
        while True:
            indices, span = sample_indices(total, rate, wish, start, end)
            frames, seen = _collect(stream(file), indices, whole=end is None)
            if seen is None or seen == total:
                break
            total = seen  # the header was wrong; now the count is known
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        return RawFrames(pixels, rate, rate * len(indices) / span, tuple(indices), reader, tuple(notes))
    raise ValueError(f"not a readable video: {file} ({'; '.join(reasons)})")


def sample_indices(
    total: int, rate: float, wish: Mapping[str, Any], start: float | None, end: float | None
) -> tuple[list[int], int]:
    """Indices of the sampled frames, first and last frame of the range included, and the length of the range."""
    length = total / rate  # seconds
    first = 0 if start is None else math.ceil(min(max(start, 0.0), length) * rate)
    last = total - 1 if end is None else min(math.floor(min(max(end, 0.0), length) * rate), total - 1)
    span = last - first + 1
    if span < 2:
        raise ValueError(
            f"the range {start or 0} s to {'the end' if end is None else f'{end} s'} holds {max(span, 0)} of the "
            f"video's {total} frames ({length:.2f} s); at least 2 are needed (use a picture for a single frame)"
        )
    count = count_frames(span, rate, **wish)
    return torch.linspace(first, last, count).round().long().tolist(), span


def count_frames(
    total: int,
    video_fps: float,
    fps: float | None = None,
    nframes: int | None = None,
    min_frames: int = 4,
    max_frames: int = 768,
) -> int:
    """How many frames to sample of `total`: an even number in [2, total]."""
    if nframes is not None:
        wanted = round(nframes / 2) * 2
    else:
        asked = total / video_fps * (2.0 if fps is None else fps)
        limit = min(max_frames, total) // 2 * 2
        wanted = math.floor(min(max(asked, math.ceil(min_frames / 2) * 2), limit) / 2) * 2
    if not 2 <= wanted <= total:
        raise ValueError(f"cannot sample {wanted} frames (an even number, at least 2) from a video of {total} frames")
    return wanted


def _collect(stream: Iterator[Fetch], indices: Sequence[int], whole: bool) -> tuple[list[np.ndarray], int | None]:
    """The wanted frames, and how many the file holds (None when stopped before its end)."""
    wanted, found, seen = set(indices), {}, 0
    for fetch in stream:
        if seen in wanted:
            found[seen] = fetch()
        seen += 1
        if not whole and seen > indices[-1]:
            return [found[i] for i in indices], None
    return [found[i] for i in indices if i in found], seen


def _probe_opencv(file: Path) -> _Header | str:
    cv2, why = optional_module("cv2")
    if cv2 is None:
        return why
    capture = cv2.VideoCapture(str(file))
    try:
        if not capture.isOpened() or not capture.grab():
            return "cannot decode it"
        return _Header(float(capture.get(cv2.CAP_PROP_FPS)), int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        capture.release()


def _stream_opencv(file: Path) -> Iterator[Fetch]:
    import cv2

    capture = cv2.VideoCapture(str(file))
    try:
        while capture.grab():
            yield lambda: cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
    finally:
        capture.release()


def _probe_pyav(file: Path) -> _Header | str:
    av, why = optional_module("av")
    if av is None:
        return why
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                return "it has no video stream"
            stream = container.streams.video[0]
            next(container.decode(stream))
            return _Header(float(stream.average_rate or 0), int(stream.frames))
    except (av.error.FFmpegError, StopIteration):
        return "cannot decode it"


def _stream_pyav(file: Path) -> Iterator[Fetch]:
    import av

    with av.open(str(file)) as container:
        for frame in container.decode(video=0):
            yield lambda frame=frame: frame.to_ndarray(format="rgb24")  # type: ignore[misc]


_READERS: dict[str, tuple[Callable[[Path], _Header | str], Stream]] = {
    "opencv": (_probe_opencv, _stream_opencv),
    "pyav": (_probe_pyav, _stream_pyav),
}
