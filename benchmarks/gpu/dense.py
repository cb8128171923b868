"""What sparse attention is measured against, and how."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vlmopt.kernels.patterns import Prefill


def milliseconds(run: Callable[[], Any], device: str) -> float:
    """Measure by CUDA events; host work between launches is included."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    marks[0].record()
    run()
    marks[1].record()
    torch.cuda.synchronize()
    return marks[0].elapsed_time(marks[1])


def dense_variants(prefill: Prefill, device: str) -> dict[str, Callable[[], Any]]:
    """Return the dense kernels that run here; keys are repeated outside the measurement where a kernel needs it."""
    if device == "cpu":
        return {"math": partial(scaled_dot_product_attention, *qkv(prefill), is_causal=True, enable_gqa=True)}

    def dense(kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])

    found: dict[str, Callable[[], Any]] = {}
    for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        q, k, v = qkv(prefill)
        for group in (1, q.shape[1] // k.shape[1]):
            run = partial(dense, kernel, q, *(x.repeat_interleave(group, 1) for x in (k, v)))
            try:
                run()
            except RuntimeError as error:
                print(f"{kernel.name} with keys repeated {group} times: {str(error).splitlines()[0]}")
                continue
            found[kernel.name] = run
            break
    return found


def qkv(prefill: Prefill) -> tuple[Tensor, Tensor, Tensor]:
    return prefill.q, prefill.k, prefill.v
