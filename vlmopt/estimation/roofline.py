"""Seconds of work on a device: products by their peak or by reading their weights, the rest by bandwidth."""

from __future__ import annotations

from collections.abc import Iterable

from .devices import BYTES, Device, at
from .scoring import Scoring
from .work import Work

ENGINES = ("eager", "graph")  # the host launches every operation; it launches whole steps, and costs nothing


def seconds(work: Work, device: Device, dtype: str, engine: str = "eager") -> float:
    """Return the seconds of one piece of work; pieces run one after another."""
    peak, bandwidth, size = device.peaks[dtype], device.bandwidth * device.stream, BYTES[dtype]
    busy = max(work.products / (peak * at(device.products, work.rows)) if work.products else 0.0,
               work.weights * size / bandwidth)  # fmt: skip
    busy += work.visible / (peak * at(device.attention, work.rows)) if work.visible else 0.0
    busy += work.keys * size / bandwidth + work.values * size / (device.bandwidth * device.between)
    host = work.blocks * device.block_us * 1e-6 if engine == "eager" else 0.0
    return max(busy, host) if device.overlaps else busy + host


def time(works: Iterable[Work], device: Device, dtype: str, engine: str = "eager") -> float:
    """Return the seconds of pieces that run one after another."""
    return sum(seconds(work, device, dtype, engine) for work in works)


def choosing(scoring: Scoring, device: Device, dtype: str = "float32") -> float:
    """Return the seconds of a choice: of its products, of what it reads, and of its steps, one after another."""
    peak, bandwidth = device.peaks[dtype], device.bandwidth * device.stream
    return (
        scoring.flops / (peak * device.products[-1][1])
        + scoring.values * BYTES[dtype] / bandwidth
        + scoring.steps * device.step_us * 1e-6
    )
