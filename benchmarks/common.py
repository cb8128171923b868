"""Shared by the benchmarks: machine facts, interleaved medians, one JSON line per run."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"
sys.path.append(str(RESULTS.parents[1]))  # a script's own folder is there alone; `tests.support` lies beside it


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu(),
        "vectors": torch.backends.cpu.get_cpu_capability() + (" and AMX" if "amx_tile" in flags() else ""),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def cpu() -> str:
    """Return the processor's model where the system tells it; `platform` knows little more than "x86_64"."""
    facts = Path("/proc/cpuinfo")
    models = facts.read_text().split("model name\t: ")[1:] if facts.is_file() else []
    return models[0].splitlines()[0] if models else platform.processor() or platform.machine()


def flags() -> list[str]:
    """Return what the processor can do, in the words of Linux; nothing elsewhere."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().split("\nflags")[1:] if facts.is_file() else []
    return lines[0].splitlines()[0].split() if lines else []


def interleaved(variants: dict[str, Callable[[], float]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Return milliseconds of every variant, measured in turns so that noise hits all alike; warm-up excluded."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for i in tqdm(range(warmup + repeats), desc="rounds", leave=False):
        for name, run in variants.items():
            ms = run()
            if i >= warmup:
                times[name].append(ms)
    return times


def append(name: str, record: dict[str, Any]) -> Path:
    """Add one line to results/<name>.jsonl."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps({"machine": machine(), **record}) + "\n")
    return path
