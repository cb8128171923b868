"""The run directory: one line per answer, written so that a kill or a full disk costs at most the batch under way.

run.json          what was asked for; a resumed run must ask for the same (more policies may be added)
samples.jsonl     one `Record` per line; when the run is complete, sorted by sample, then by policy
samples.N.jsonl   the lines of process N while several processes run; merged into samples.jsonl
kept/POLICY/ID.npz   what a policy kept (`maps.load_maps`), and ID.webp, the image as the tower sees it
pictures/         images that the run itself generated
summary.json      figures (`summary.summarize`)
environment.json  versions, device, command lines
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..atomic import atomic_write

FORMAT = 1
SAMPLES = "samples.jsonl"
DENSE = "dense"  # the policy that every run has, and that the others are compared with


@dataclass(frozen=True, kw_only=True)
class Record:
    """One answer of one policy.

    Attributes:
        id, index: of the sample, and its place in the data.
        policy: name; "dense" is always among those of a run.
        question: as it was put to the model.
        answer: the right answer, several accepted ones, or None where there is none to compare with.
        prediction: what the model said; None where it was not asked or failed.
        category: of the sample ("adversarial", "mobile/icon", ...), or "".
        kind: yes_no, caption, click, choice, exact, anls or open.
        correct: True or False, a fraction from 0 to 1 (anls), or None where nothing is marked (caption, open, a
            sample that cannot be asked). A policy that failed on a sound sample is wrong there.
        metrics: the sample's own figures, by kind (`scoring.grade`).
        image: the first image, relative to the run directory or absolute; None for a video or text alone.
        picture: samples with the same image are resampled together.
        tokens: prompt, visual, kept (after the last cut), layer_average.
        ms: vision, scoring, prefill, ttft, decode, total: of the whole batch; None where a stage did not run.
        decode_tokens_per_s: of every sequence of the batch.
        kv_bytes: keys and values that the whole batch kept of its prompts; None where none were counted.
        memory_bytes: peak of the process since the policy was put on, weights included; None where nothing counts it.
        new_tokens: of this sample, the end mark included.
        batch, call: samples in the batch, and the id of its first: one `ms` per (policy, call).
        error: why there is no answer.
        map, seen: files of the kept tokens, and of the image on whose grid they lie, relative to the run directory.
        extra: box and point (x0, y0, x1, y1 and x, y in pixels of the image), platform, data_type, objects, choices,
            further images, video, notes, and what else the data said.
    """

    id: str
    index: int
    policy: str
    question: str
    answer: str | list[str] | None
    prediction: str | None
    category: str
    kind: str
    correct: bool | float | None
    metrics: dict[str, Any] = field(default_factory=dict)
    image: str | None = None
    picture: str = ""
    tokens: dict[str, float] | None = None
    ms: dict[str, float | None] | None = None
    decode_tokens_per_s: float | None = None
    memory_bytes: int | None = None
    kv_bytes: int | None = None
    new_tokens: int | None = None
    batch: int = 1
    call: str = ""
    error: str | None = None
    map: str | None = None
    seen: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return self.policy, self.id


class Writer:
    """Append records to one file; every `append` is on disk when it returns, or leaves the file as it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)  # a buffer would write what failed once more when it is closed

    def append(self, records: Iterable[Record]) -> None:
        """Write whole lines.

        Raises:
            OSError: the disk is full or gone; what was written before stays readable.
        """
        rest = memoryview("".join(map(line, records)).encode())
        before = os.fstat(self._file.fileno()).st_size
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            os.truncate(self.path, before)
            raise OSError(
                error.errno,
                f"cannot write to {self.path}: {error.strerror}. Every answer before this batch is saved: make room, "
                "then run the same command again",
            ) from error

    def close(self) -> None:
        self._file.close()


def line(record: Record) -> str:
    return json.dumps(asdict(record), ensure_ascii=False, allow_nan=False) + "\n"


def read(run: Path) -> list[Record]:
    """Return all records of a run directory, each (policy, sample) once, in the order of their writing.

    The unfinished last line that a kill leaves is skipped.

    Raises:
        ValueError: a line in the middle is damaged, or was written by a newer version.
    """
    found: dict[tuple[str, str], Record] = {}
    for path in (run / SAMPLES, *parts(run)):
        for record in _records(path):
            found.setdefault(record.key, record)
    return list(found.values())


def consolidate(run: Path, policies: Sequence[str], *, without_errors: bool = False) -> list[Record]:
    """Bring the lines of all processes together in samples.jsonl, by sample and then in the order of `policies`.

    `without_errors` leaves out what has an error, to be asked once more. A kill at any moment loses nothing: the new
    file replaces the old one whole, and only then do the parts go.
    """
    place = {name: number for number, name in enumerate(policies)}
    kept = (record for record in read(run) if record.error is None or not without_errors)
    records = sorted(kept, key=lambda r: (r.index, place.get(r.policy, len(place))))
    with atomic_write(run / SAMPLES) as fresh:
        fresh.write_text("".join(map(line, records)), encoding="utf-8")
    for path in parts(run):
        path.unlink()
    return records


def parts(run: Path) -> list[Path]:
    """Return the files of the processes of an unfinished run."""
    return sorted(run.glob("samples.*.jsonl"))


def part(run: Path, process: int) -> Path:
    """Return the file that a process writes."""
    return run / (f"samples.{process:05d}.jsonl" if process else SAMPLES)


def file_name(name: str) -> str:
    """Turn a sample's id or a policy's name into the name of a file; different names stay different."""
    safe = quote(name, safe=" +@,").replace("%", "=")  # a percent sign would need care in links
    short = safe[:120].strip(". ")
    return safe if short == safe else f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _records(path: Path) -> Iterable[Record]:
    if not path.exists():
        return
    known = {f.name for f in fields(Record)}
    lines = path.read_bytes().split(b"\n")
    for number, text in enumerate(lines[:-1], start=1):  # what follows the last newline was cut off by a kill
        try:
            entry = json.loads(text)
            yield Record(**{name: value for name, value in entry.items() if name in known})
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number}, is not a record ({error}): delete that line, or choose another --out"
            ) from error
