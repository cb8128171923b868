"""Devices that `vlmopt estimate` predicts for: what they lack, and how one is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vlmopt
from vlmopt.cli.main import main
from vlmopt.estimation import calibration, devices
from vlmopt.estimation.calibration import save
from vlmopt.estimation.devices import made, table

SEVEN = "Qwen/Qwen2.5-VL-7B-Instruct"


def test_a_device_without_bfloat16_takes_float16() -> None:
    (dense,) = vlmopt.estimate(SEVEN, policies=[], devices=["t4"]).predictions
    assert dense.dtype == "float16"
    assert not dense.fits
    assert dense.largest_batch == 0


def test_devices_are_complete_and_sourced() -> None:
    assert {"h100", "a100", "l40s", "4090", "t4", "cpu"} <= devices().keys()
    assert {"peaks", "products", "attention", "stream", "block_us", "cpu"} <= table()["sources"].keys()


def test_a_device_with_float32_alone_takes_it() -> None:
    """What was not asked for by name: another dtype is refused."""
    (dense,) = vlmopt.estimate("tiny-qwen", image="280x280", policies=[], devices=["cpu"]).predictions
    assert dense.dtype == "float32"
    with pytest.raises(ValueError, match="no peak for float16; known: float32"):
        vlmopt.estimate("tiny-qwen", image="280x280", policies=[], devices=["cpu"], dtype="float16")


def test_methods_choose_in_float32_on_a_measured_device_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rate is measured beside that of the dtype that is asked for; an entry without it is refused by name."""

    def rate(weights: list[torch.Tensor], rows: int) -> float:
        return 2e12 if weights[0].dtype == torch.bfloat16 else 1e12

    monkeypatch.setattr(calibration, "product_rate", rate)
    monkeypatch.setattr(calibration, "held", lambda where, kind: 2)
    monkeypatch.setattr(calibration, "SECONDS", 0.0)
    entry = calibration.calibrate("cpu", "bfloat16")
    assert entry["peak_tflops"] == {"bfloat16": 2.0, "float32": 1.0}
    with pytest.raises(ValueError, match="mine has no peak for float32"):
        made("mine", {**entry, "peak_tflops": {"bfloat16": 2.0}})


def test_measured_devices(tmp_path: Path) -> None:
    row = {**table()["devices"]["h100"], "title": "mine", "bandwidth_gbs": 1000}
    path = save(tmp_path / "devices.json", "h100", row)
    save(path, "other", row)
    assert {"h100", "other", "t4"} <= devices(path).keys()
    assert devices(path)["h100"].bandwidth == 1e12
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no devices"):
        devices(tmp_path / "bad.json")


def test_a_file_of_something_else_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before this machine is measured, which takes a while."""
    file = tmp_path / "policy.json"
    file.write_text('{"format": 1}')
    monkeypatch.setattr("vlmopt.estimation.calibration.calibrate", lambda **asked: pytest.fail("it measured"))
    assert main(["estimate", "--model", "tiny-qwen", "--calibrate", "here", "--measured", str(file)]) == 2
    assert file.read_text() == '{"format": 1}'
