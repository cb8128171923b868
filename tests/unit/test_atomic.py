"""A file is written as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlmopt.atomic import atomic_write


def test_it_takes_the_place_of_the_old_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    with atomic_write(path) as fresh:
        fresh.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["state.json"]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_what_fails_half_way_leaves_the_old_one(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")

    def write() -> None:
        with atomic_write(path) as fresh:
            fresh.write_text("ne")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["state.json"]


def test_an_error_of_the_disk_names_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"cannot write .*a\.png: No such file"),
        atomic_write(tmp_path / "gone" / "a.png") as fresh,
    ):
        fresh.write_bytes(b"x")
    with pytest.raises(OSError, match=r"cannot write .*a\.png: encoder error -2"), atomic_write(tmp_path / "a.png"):
        raise OSError("encoder error -2")  # without a number, as Pillow raises it
