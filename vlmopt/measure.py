"""Measure several policies on the same prompt, interleaved in one process: tokens, time to first token, memory."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vlmopt.core import hinting

from .api import optimized, report
from .offload import device_of
from .reporting import Report

CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Spread:
    """Median and the 20th and 80th percentiles of repeated runs."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        fifths = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else values * 4
        return cls(statistics.median(values), fifths[0], fifths[3])

    def to_dict(self) -> dict[str, float]:
        return {"median": self.median, "p20": self.p20, "p80": self.p80}


@dataclass(frozen=True)
class Measurement:
    """What one policy cost on one prompt; counts are of the first sample."""

    prompt_tokens: int
    visual_tokens: int
    visual_tokens_kept: int
    markers: int
    ttft_ms: Spread
    vision_ms: Spread | None
    decode_tokens_per_s: Spread | None
    peak_memory_bytes: int | None
    peak_memory_rise_bytes: int | None  # above what lay there before the run
    peak_memory_kind: str  # what was counted, or why nothing was
    new_ids: Tensor  # Long[batch, new], of the last run
    report: Report

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict, without the ids."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "visual_tokens": self.visual_tokens,
            "visual_tokens_kept": self.visual_tokens_kept,
            "markers": self.markers,
            "ttft_ms": self.ttft_ms.to_dict(),
            "vision_ms": None if self.vision_ms is None else self.vision_ms.to_dict(),
            "decode_tokens_per_s": None if self.decode_tokens_per_s is None else self.decode_tokens_per_s.to_dict(),
            "peak_memory_bytes": self.peak_memory_bytes,
            "peak_memory_rise_bytes": self.peak_memory_rise_bytes,
            "peak_memory_kind": self.peak_memory_kind,
            "report": self.report.to_dict(),
        }


@hinting
def measure(
    model: Any,
    inputs: Mapping[str, Any],
    policies: Mapping[str, Any],
    *,
    repeats: int = 5,
    warmup: int = 1,
    max_new_tokens: int = 32,
    seed: int = 0,
    generate: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Measurement]:
    """Run `generate` under every policy in turn, `warmup` rounds unmeasured, then `repeats` rounds measured.

    Args:
        model: a loaded vision-language model; it is given back as it came.
        inputs: arguments of `model.generate`, on its device.
        policies: name -> anything `Policy.load` takes; "dense" for the unpruned model.
        seed: of torch's global generator, set before every run, so that sampling is the same for all.
        generate: further arguments of `generate`; greedy decoding is the default.
        progress: show on stderr how many runs are done.

    Raises:
        ValueError: repeats < 1, warmup < 0, max_new_tokens < 1, no policy, or one that cannot work on this model.
    """
    for name, value, least in (("repeats", repeats, 1), ("warmup", warmup, 0), ("max_new_tokens", max_new_tokens, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
    if not policies:
        raise ValueError("no policy to measure; give at least one, e.g. {'dense': 'dense'}")
    arguments = {"do_sample": False, "max_new_tokens": max_new_tokens, **(generate or {})}
    device = device_of(model)
    reports: dict[str, list[Report]] = {name: [] for name in policies}
    ids: dict[str, Tensor] = {}
    bar = tqdm(total=(warmup + repeats + 1) * len(policies), desc="measuring", unit="run", disable=not progress)
    for turn in range(warmup + repeats):
        for name, policy in policies.items():
            torch.manual_seed(seed)
            with optimized(model, policy):
                ids[name] = model.generate(**inputs, **arguments)
                if turn >= warmup:
                    reports[name].append(report(model))
            bar.update()
    # Memory in a round of its own: preparing to count it costs time in the run that follows.
    memory: dict[str, tuple[int | None, int | None, str]] = {}
    for name, policy in policies.items():
        torch.manual_seed(seed)
        with optimized(model, policy):
            counter = PeakMemory(device)
            counter.start()
            model.generate(**inputs, **arguments)
            memory[name] = counter.stop()
        bar.update()
    bar.close()
    start = inputs["input_ids"].shape[1]
    return {name: _summary(reports[name], memory[name], ids[name][:, start:].cpu()) for name in policies}


class PeakMemory:
    """Measure the peak memory of what runs between `start` and `stop`.

    On CUDA the allocator's own count; on a Linux CPU the peak resident set, whose mark the kernel sets back on request.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = 0

    def start(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        elif self._resettable():
            gc.collect()
            # Freed heap pages would stay resident and hide what the next run needs (glibc only).
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)
            CLEAR.write_text("5")
            self.before = _status("VmRSS")

    def stop(self) -> tuple[int | None, int | None, str]:
        """Return (peak bytes, those beyond the start's, what was counted), or (None, None, why nothing was)."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device)
            return peak, peak - self.before, "allocated on the GPU, weights included"
        if self._resettable():
            peak = _status("VmHWM")
            return peak, max(peak - self.before, 0), "resident memory of the process, weights included"
        return None, None, f"no peak memory counter for {self.device.type} on {sys.platform}"

    def _resettable(self) -> bool:
        return self.device.type == "cpu" and sys.platform == "linux" and os.access(CLEAR, os.W_OK)


def _status(key: str) -> int:
    """Return a memory figure of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key + ":")).split()[1]) * 1024


def _summary(reports: list[Report], memory: tuple[int | None, int | None, str], new_ids: Tensor) -> Measurement:
    last = reports[-1]
    sample = last.samples[0]

    def spread(values: list[float | None]) -> Spread | None:
        known = [value for value in values if value is not None]
        return Spread.of(known) if known else None

    ttft = spread([r.ms["ttft"] for r in reports])
    if ttft is None:
        raise RuntimeError("the ledger holds no time to first token although generate() returned")
    return Measurement(
        prompt_tokens=sample["prompt_tokens"],
        visual_tokens=sample["visual_tokens"],
        visual_tokens_kept=sample["visual_tokens_kept"],
        markers=sample["markers"],
        ttft_ms=ttft,
        vision_ms=spread([r.ms["vision"] for r in reports]),
        decode_tokens_per_s=spread([r.decode_tokens_per_s for r in reports]),
        peak_memory_bytes=memory[0],
        peak_memory_rise_bytes=memory[1],
        peak_memory_kind=memory[2],
        new_ids=new_ids,
        report=last,
    )
