"""Records on disk: whole lines or none, whatever happens, and every answer once."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlmopt.evaluation import records
from vlmopt.evaluation.maps import load_maps, save_image, save_maps
from vlmopt.evaluation.records import Record, Writer, consolidate, file_name, part, parts, read
from vlmopt.overlay import overlay
from vlmopt.reporting import VisualMap


def record(name: str, policy: str = "dense", index: int = 0, **changes: Any) -> Record:
    facts = {"question": "?", "answer": "yes", "prediction": "yes", "category": "", "kind": "yes_no", "correct": True}
    return Record(id=name, policy=policy, index=index, **{**facts, **changes})


def written(run: Path, process: int, *rows: Record) -> Path:
    writer = Writer(part(run, process))
    writer.append(rows)
    writer.close()
    return part(run, process)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    one = record("é/1", extra={"box": [1.5, 2]}, ms={"ttft": 1.5, "vision": None}, tokens={"visual": 4})
    written(tmp_path, 0, one, record("2", prediction=None, correct=None, error="line\nbreak"))
    assert read(tmp_path)[0] == one
    assert read(tmp_path)[1].error == "line\nbreak"


def test_a_torn_last_line_is_skipped_and_does_not_join_the_next(tmp_path: Path) -> None:
    """What a kill -9 in the middle of a write leaves."""
    path = written(tmp_path, 0, record("1"), record("2"))
    os.truncate(path, path.stat().st_size - 20)
    assert [r.id for r in read(tmp_path)] == ["1"]
    consolidate(tmp_path, ["dense"])
    written(tmp_path, 0, record("2"), record("3"))
    assert [r.id for r in read(tmp_path)] == ["1", "2", "3"]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, 0, record("1"), record("2"))
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(ValueError, match=r"line 1, is not a record"):
        read(tmp_path)


def test_parts_are_merged_in_the_order_of_the_data_each_answer_once(tmp_path: Path) -> None:
    written(tmp_path, 0, record("b", index=1), record("b", "half", index=1))
    written(tmp_path, 1, record("a", "half"), record("b", index=1, prediction="late"))
    written(tmp_path, 2, record("a"))
    merged = consolidate(tmp_path, ["dense", "half"])
    assert [r.key for r in merged] == [("dense", "a"), ("half", "a"), ("dense", "b"), ("half", "b")]
    assert read(tmp_path) == merged
    assert merged[2].prediction == "yes"
    assert not parts(tmp_path)


def test_errors_may_be_left_out_to_be_asked_again(tmp_path: Path) -> None:
    written(tmp_path, 0, record("1"), record("2", prediction=None, error="no memory"))
    assert [r.id for r in consolidate(tmp_path, ["dense"], without_errors=True)] == ["1"]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the lines get onto the disk before it is full; the file is as it was before the batch."""
    path = written(tmp_path, 0, record("1"))
    writer = Writer(path)

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.left = file, 100

        def write(self, data: memoryview) -> int:
            if not self.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            count, self.left = self.file.write(data[: self.left]), 0
            return count

        def fileno(self) -> int:
            return self.file.fileno()

    before = path.read_bytes()
    monkeypatch.setattr(writer, "_file", Full(writer._file))
    with pytest.raises(OSError, match=r"cannot write to .*No space left on device.*make room") as caught:
        writer.append([record("2"), record("3")])
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before


def test_a_full_disk_spares_the_old_file_when_one_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 0, record("1"))
    written(tmp_path, 1, record("2"))

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        consolidate(tmp_path, ["dense"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.00001.jsonl", "samples.jsonl"]
    assert [r.id for r in read(tmp_path)] == ["1", "2"]


def test_fields_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    path = written(tmp_path, 0, record("1"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mood": "good"}) + "\n")
    assert read(tmp_path) == [record("1")]


def test_names_of_files_stay_apart() -> None:
    names = ["a/b", "a_b", "a=2Fb", "a%b", "..", ".", "x" * 300, "x" * 299 + "y", "ä", " a", "a"]
    safe = [file_name(name) for name in names]
    assert len(set(safe)) == len(names)
    assert all("/" not in name and "%" not in name and name.strip(". ") and len(name) < 150 for name in safe)


def test_maps_come_back_and_can_be_drawn(tmp_path: Path) -> None:
    grid = torch.tensor([[0, y, x] for y in range(2) for x in range(3)])
    flags = torch.tensor([True, False, True, False, False, True])
    known = VisualMap(0, "image", (1, 2, 3), grid, flags, ~flags, flags, torch.arange(6), torch.rand(6))
    unknown = VisualMap(1, "tile", None, grid, flags, flags, flags, torch.arange(6), None)
    save_maps(tmp_path / "kept" / "a.npz", [known, unknown])
    first, second = load_maps(tmp_path / "kept" / "a.npz")
    assert (first.grid, first.kind, second.grid, second.scores) == ((1, 2, 3), "image", None, None)
    for name in ("coords", "kept", "markers", "merged", "merged_into", "scores"):
        assert torch.equal(getattr(first, name), getattr(known, name))
    assert overlay(Image.new("RGB", (90, 60)), [first]).size[0] > 600
    save_image(tmp_path / "a.webp", Image.new("RGB", (2000, 1000)))
    assert Image.open(tmp_path / "a.webp").size == (768, 384)
