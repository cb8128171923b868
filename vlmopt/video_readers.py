"""Decode evenly spaced frames of a video file with OpenCV or PyAV; neither is imported before it is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
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
ASSUMED = 24.0  # frames per second of a file that does not say


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


@dataclass(frozen=True)
class _Range:
    """What is wanted: arguments of `count_frames`, and seconds from and to, None for the ends of the file."""

    wish: Mapping[str, Any]
    start: float | None
    end: float | None


@dataclass(frozen=True)
class _Reading:
    """A file that one reader could open."""

    reader: str
    file: Path
    header: _Header

    @property
    def fps(self) -> float:
        """Frames per second; `ASSUMED` where the file states no possible rate."""
        stated = self.header.fps
        return stated if math.isfinite(stated) and stated > 0 else ASSUMED

    def count(self) -> int:
        """Return how many frames can be read."""
        return _collect(self._stream(), (), whole=True)[1] or 0

    def take(self, total: int, wanted: _Range, reasons: Sequence[str]) -> tuple[RawFrames | None, int | None]:
        """Return the wanted frames of `total`; and how many there really are, None if not read to the end."""
        indices, span = sample_indices(total, self.fps, wanted.wish, wanted.start, wanted.end)
        frames, seen = _collect(self._stream(), indices, whole=wanted.end is None)
        if seen not in (None, total):
            return None, seen
        notes = [f"read with {self.reader} ({'; '.join(reasons)})"] if reasons else []
        if self.fps != self.header.fps:
            notes.append(f"the file states no frame rate; {ASSUMED:g} per second assumed")
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        rate = self.fps * len(indices) / span
        return RawFrames(pixels, self.fps, rate, tuple(indices), self.reader, tuple(notes)), seen

    def _stream(self) -> Iterator[Fetch]:
        return _READERS[self.reader][1](self.file)


def decode_sampled(
    file: Path, readers: Sequence[str], wish: Mapping[str, Any], start: float | None, end: float | None
) -> RawFrames:
    """Sample a video with the first reader that reads all the frames it claims, else with the one that reads most.

    Args:
        file: the video.
        readers: names, in the order in which they are tried.
        wish: the arguments of `count_frames`.
        start, end: seconds; None for the ends of the file.

    Raises:
        ValueError: no reader finds a frame, or the file holds too few for what is asked.
    """
    wanted, reasons = _Range(wish, start, end), list[str]()
    short: list[tuple[int, _Reading]] = []  # single frames, and files that look cut off
    for reader in readers:
        header = _opened(reader, file)
        if isinstance(header, str):
            reasons.append(f"{reader}: {header}")
            continue
        reading, count = _Reading(reader, file, header), None
        if header.frames > 1:
            found, count = reading.take(header.frames, wanted, reasons)
            if found is not None:
                return found
        count = reading.count() if count is None else count
        short.append((count, reading))
        if count > 1 and count >= header.frames:
            break  # only the claim was wrong
    best = max(short, key=lambda one: one[0], default=None)
    if best is None or not best[0]:
        raise ValueError(f"not a readable video: {file} ({'; '.join(reasons) or 'no frame can be decoded'})")
    count, reading = best
    if count < reading.header.frames:
        reasons.append(f"{count} of the {reading.header.frames} frames that the file claims can be read")
    found, seen = reading.take(count, wanted, reasons)
    if found is None:
        raise ValueError(f"not a readable video: {file} ({reading.reader} read {count} frames, then {seen})")
    return found


def _opened(reader: str, file: Path) -> _Header | str:
    """Return what a reader says of a file, or why it cannot open it."""
    try:
        return _READERS[reader][0](file)
    except Exception as error:  # decoders raise whatever a damaged file makes them
        return f"{type(error).__name__}: {error}"


def sample_indices(
    total: int, rate: float, wish: Mapping[str, Any], start: float | None, end: float | None
) -> tuple[list[int], int]:
    """Return the indices of the sampled frames, with the range's first and last frame, and the length of the range."""
    length = total / rate  # seconds
    first = 0 if start is None else math.ceil(min(max(start, 0.0), length) * rate)
    last = total - 1 if end is None else min(math.floor(min(max(end, 0.0), length) * rate), total - 1)
    span = last - first + 1
    if span < 1:
        raise ValueError(
            f"the range {start or 0} s to {'the end' if end is None else f'{end} s'} holds 0 of the video's {total} "
            f"frames ({length:.2f} s); at least 1 is needed"
        )
    count = count_frames(span, rate, **wish)
    return torch.linspace(first, last, count, dtype=torch.float32).round().long().tolist(), span


def count_frames(
    total: int,
    video_fps: float,
    fps: float | None = None,
    nframes: int | None = None,
    min_frames: int = 4,
    max_frames: int = 768,
) -> int:
    """Return how many frames to sample of `total`: an even number in [2, total], or 1 where there is no more."""
    if total == 1 and nframes in (None, 1):
        return 1
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
    """Return the wanted frames, and how many the file holds (None when stopped before its end).

    Damage counts as the end.
    """
    wanted, found, seen = set(indices), {}, 0
    with suppress(Exception):  # decoders raise whatever a damaged file makes them
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
