"""Devices as data: peaks, bandwidth, and what share of them real kernels reach, each with its source."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from vlmopt.core import parse, shown, unknown

from ..paths import check_file

TABLE = Path(__file__).parent / "devices.json"
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
Curve = tuple[tuple[float, float], ...]  # (rows, share of the peak), by rising rows


@dataclass(frozen=True)
class Device:
    """One device; times in microseconds, rates per second."""

    name: str
    title: str
    memory: float  # bytes
    bandwidth: float  # bytes a second
    peaks: Mapping[str, float]  # dtype -> FLOPs a second
    products: Curve
    attention: Curve
    stream: float  # share of the bandwidth that reading weights and keys reaches
    between: float  # share that the operations between products reach
    block_us: float  # of the host, for the small operations of one block
    step_us: float  # of one small operation that waits for another
    overlaps: bool  # the host runs ahead of the device, so that the longer of both counts

    def dtype(self, wanted: str) -> str:
        """Return the dtype of the weights: what was asked for; where it is bfloat16 and lacks, float16 or float32.

        Raises:
            ValueError: a dtype that this device lacks.
        """
        usable = tuple(BYTES) if wanted == "bfloat16" else (wanted,)
        chosen = next((dtype for dtype in usable if dtype in self.peaks), None)
        if chosen is None:
            raise ValueError(f"{self.name} has no peak for {wanted}; known: {', '.join(self.peaks)}")
        return chosen


def at(curve: Curve, rows: float) -> float:
    """Return the share at a number of rows: linear in its logarithm between the points, flat outside them."""
    if rows <= curve[0][0]:
        return curve[0][1]
    for (low, before), (high, after) in pairwise(curve):
        if rows <= high:
            return before + (after - before) * math.log(rows / low) / math.log(high / low)
    return curve[-1][1]


@cache
def table() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return data


def devices(measured: str | Path | None = None) -> dict[str, Device]:
    """Return every device by name.

    Args:
        measured: a file that `vlmopt estimate --calibrate` wrote; its devices come first, and replace those of a name.

    Raises:
        ValueError: a file that cannot be read, or holds no devices.
    """
    entries = dict(table()["devices"])
    if measured is not None:
        try:
            data = parse(check_file(measured, "file of devices").read_text(encoding="utf-8"))
            own = {name: made(name, entry) for name, entry in data["devices"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            why = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{measured} holds no devices as `vlmopt estimate --calibrate` writes them: {why}"
            ) from error
        return own | {name: made(name, entry) for name, entry in entries.items() if name not in own}
    return {name: made(name, entry) for name, entry in entries.items()}


def device(name: str, measured: str | Path | None = None) -> Device:
    """Return one device.

    Raises:
        ValueError: not known.
    """
    found = devices(measured)
    if name not in found:
        raise ValueError(unknown("device", name, found))
    return found[name]


def made(name: str, entry: Mapping[str, Any]) -> Device:
    """Make a device from its entry of the table.

    Raises:
        ValueError: it has no peak in float32, in which methods choose, or a curve that is none.
    """
    if "float32" not in entry["peak_tflops"]:
        raise ValueError(f"{name} has no peak for float32, in which methods choose; measure it again")
    return Device(
        name=name,
        title=entry["title"],
        memory=entry["memory_gb"] * 1e9,
        bandwidth=entry["bandwidth_gbs"] * 1e9,
        peaks={dtype: peak * 1e12 for dtype, peak in entry["peak_tflops"].items()},
        products=curve(entry["products"]),
        attention=curve(entry["attention"]),
        stream=entry["stream"],
        between=entry["between"],
        block_us=entry["block_us"],
        step_us=entry["step_us"],
        overlaps=entry["overlaps"],
    )


def curve(points: Any) -> Curve:
    found = tuple((float(rows), float(share)) for rows, share in points)
    if not found or any(rows <= 0 or share <= 0 for rows, share in found) or list(found) != sorted(found):
        raise ValueError(f"a curve must be points [rows > 0, share > 0] by rising rows, got {shown(points)}")
    return found
