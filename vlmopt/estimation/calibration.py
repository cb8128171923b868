"""Measure this machine's peaks, bandwidth and small operations in about a minute, in the form of `devices.json`."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from ..loading import check_device
from .devices import BYTES

ROWS = (16, 64, 128, 256, 512, 1024, 2048)
KEYS = (64, 128, 256, 512, 1024, 2048)
SIDE = 2048  # of the weights; together they are larger than a cache
HEADS, HEAD_DIM = 16, 64
SECONDS = 1.5  # of each measurement


def calibrate(device: str = "auto", dtype: str = "float32") -> dict[str, Any]:
    """Return the entry of this machine, for the file that `devices(measured=...)` reads.

    Args:
        device: "auto", "cpu", "cuda", ... dtype: of the products.

    Raises:
        ValueError: a device or dtype that cannot be had.
    """
    where = check_device(device)
    if dtype not in BYTES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(BYTES)}")
    kind = getattr(torch, dtype)
    with torch.inference_mode():
        weights = [torch.randn(SIDE, SIDE, device=where, dtype=kind) / SIDE for _ in range(held(where, kind))]
        rates = {rows: product_rate(weights, rows) for rows in ROWS}
        peak = max(rates.values())
        bandwidth = SIDE**2 * BYTES[dtype] / each(turning(weights, 1))
        attention = {keys: attention_rate(keys, where, kind) for keys in KEYS}
        between = between_rate(where, kind)
        step = step_us(where)
        block = block_us(where, kind)
        peaks = {dtype: peak}
        if dtype != "float32":  # in which methods choose
            peaks["float32"] = product_rate([weight.float() for weight in weights[:4]], ROWS[-1])
    return {
        "title": title(where),
        "memory_gb": memory(where) / 1e9,
        "bandwidth_gbs": bandwidth / 1e9,
        "peak_tflops": {name: rate / 1e12 for name, rate in peaks.items()},
        "products": [[rows, rate / peak] for rows, rate in rates.items()],
        "attention": [[keys, rate / peak] for keys, rate in attention.items()],
        "stream": 1.0,
        "between": between / bandwidth,
        "block_us": block,
        "step_us": step,
        "overlaps": where.type == "cuda",
        "measured": {"torch": torch.__version__, "threads": torch.get_num_threads(), "dtype": dtype},
    }


def save(path: str | Path, name: str, entry: dict[str, Any]) -> Path:
    """Write an entry under a name; other names that the file holds stay."""
    path = Path(path)
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    data = {"devices": {**data.get("devices", {}), name: entry}}
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return path


def held(where: torch.device, kind: torch.dtype) -> int:
    """Make weights of 1 GB together."""
    return max(2, int(1e9 // (SIDE**2 * torch.empty((), dtype=kind).element_size())))


def turning(weights: list[Tensor], rows: int) -> Callable[[], Tensor]:
    """Make a function that multiplies by the next of the weights at every call."""
    x = torch.randn(rows, SIDE, device=weights[0].device, dtype=weights[0].dtype)
    at = iter(range(10**9))
    return lambda: x @ weights[next(at) % len(weights)].T


def product_rate(weights: list[Tensor], rows: int) -> float:
    """Measure FLOPs per second of products of `rows` rows."""
    return 2 * rows * SIDE**2 / each(turning(weights, rows))


def attention_rate(keys: int, where: torch.device, kind: torch.dtype) -> float:
    """Measure FLOPs per second of causal attention, of pairs that a row sees."""
    q, k, v = (torch.randn(1, HEADS, keys, HEAD_DIM, device=where, dtype=kind) for _ in range(3))
    pairs = keys * (keys + 1) / 2
    return 4 * pairs * HEADS * HEAD_DIM / each(lambda: scaled_dot_product_attention(q, k, v, is_causal=True))


def between_rate(where: torch.device, kind: torch.dtype) -> float:
    """Measure bytes per second of a gate, which reads two tensors and writes one."""
    a, b = (torch.randn(1024, 3072, device=where, dtype=kind) for _ in range(2))
    return 3 * a.numel() * a.element_size() / each(lambda: silu(a).mul_(b))


def step_us(where: torch.device) -> float:
    """Measure the microseconds of one small operation in a chain."""
    x, y = torch.rand(1024, device=where), torch.rand(1024, device=where)

    def chain() -> Tensor:
        z = x
        for _ in range(50):
            z = torch.maximum(z, y)
        return z

    return each(chain) / 50 * 1e6


def block_us(where: torch.device, kind: torch.dtype) -> float:
    """Measure the microseconds that a decoder block takes whose products are next to nothing."""
    from transformers import Qwen2Config, Qwen2Model

    layers = 8
    config = Qwen2Config(
        hidden_size=64, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=32,
    )  # fmt: skip
    model = Qwen2Model(config).to(where, kind).eval()
    ids = torch.zeros(1, 1, dtype=torch.long, device=where)
    return each(lambda: model(input_ids=ids)) / layers * 1e6


def each(work: Callable[[], Any]) -> float:
    """Measure the seconds of one call: the median over calls, warm-up excluded."""
    for _ in range(3):
        work()
    finish()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 5 or time.perf_counter() < end:
        start = clock()
        work()
        finish()
        times.append(clock() - start)
    return statistics.median(times)


def clock() -> float:
    """Read a clock in seconds.

    On a CPU with a single thread it is the time of that thread, so that other programs do not count.
    """
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.thread_time() if alone else time.perf_counter()


def finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory(where: torch.device) -> int:
    if where.type == "cuda":
        return int(torch.cuda.get_device_properties(where).total_memory)
    pages = Path("/proc/meminfo")
    lines = pages.read_text().splitlines() if pages.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")), 8 * 10**9)


def title(where: torch.device) -> str:
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    facts = Path("/proc/cpuinfo")
    models = facts.read_text().split("model name\t: ")[1:] if facts.is_file() else []
    name = models[0].splitlines()[0] if models else "CPU"
    return f"{name}, {torch.get_num_threads()} threads"
