"""Attention sinks: tokens that stand out in a few hidden dimensions, and those dimensions for known models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def sink_scores(x: Tensor, dims: Sequence[int], eps: float = 1e-6) -> Tensor:
    """Return phi = max over `dims` of |x_c| / rms(x): fp32 [B, N], at most sqrt(D).

    See What You Are Told: Visual Attention Sink in Large Multimodal Models (arXiv 2503.03321).

    Args:
        x: [B, N, D] residual stream before the norm of a decoder layer, any float dtype. dims: hidden dimensions.

    Raises:
        ValueError: no dimension, or one that x does not have.
    """
    if not dims or not all(0 <= c < x.shape[-1] for c in dims):
        raise ValueError(f"sink dimensions {tuple(dims)!r} must be in 0..{x.shape[-1] - 1}, one at least")
    x = x.float()
    rms = (x.square().mean(-1) + eps).sqrt()
    return torch.stack([x[..., c] for c in dims]).abs().amax(0) / rms  # no index tensor that would have to be copied


def sink_mask(phi: Tensor, tau: float, valid: Tensor | None = None) -> Tensor:
    """Return Bool[B, N]: phi >= tau, without padding (valid Bool[B, N])."""
    found = phi >= tau
    return found if valid is None else found & valid


def auto_tau(hidden_size: int) -> float:
    """Return 0.3125 sqrt(D), D the hidden size: the published tau of 20 at D = 4096.

    At any D it is the same share of sqrt(D), the largest possible phi.
    """
    return 0.3125 * math.sqrt(hidden_size)


@dataclass(frozen=True)
class Published:
    """Sink dimensions of a model.

    `status`: "P" stated in the paper, "C" read in its released code, "T" in ports by others and unverified; then
    `dims` is one port's list, `others` what other ports have.
    """

    name: str
    model: Mapping[str, Any]  # facts by which it is known
    dims: tuple[int, ...]
    status: str
    others: tuple[tuple[int, ...], ...] = ()


def shape(hidden_size: int, layers: int, num_heads: int, num_kv_heads: int, *model_types: str) -> dict[str, Any]:
    sizes = {"hidden_size": hidden_size, "layers": layers, "num_heads": num_heads, "num_kv_heads": num_kv_heads}
    return {**sizes, "model_type": model_types}


PUBLISHED = (
    Published("LLaVA-1.5-7B", shape(4096, 32, 32, 32, "llava"), (1415, 2533), "P"),
    Published("LLaVA-1.5-13B", shape(5120, 40, 40, 40, "llava"), (2100, 4743), "C"),
    Published("LLaVA-1.6-vicuna-13B", shape(5120, 40, 40, 40, "llava_next"), (2100, 4743), "C"),
    Published("Qwen2-VL-7B", shape(3584, 28, 28, 4, "qwen2_vl"), (458, 2570), "P"),
    Published("InternVL2-8B", shape(4096, 32, 32, 8, "internvl_chat"), (3584,), "P"),
    Published("Qwen2.5-VL-7B", shape(3584, 28, 28, 4, "qwen2_5_vl"), (458, 2570), "T"),
    Published("Qwen2.5-Omni-7B", shape(3584, 28, 28, 4, "qwen2_5_omni", "qwen2_5_omni_thinker"), (458, 2570), "T"),
    Published("Qwen2.5-VL-3B", shape(2048, 36, 16, 2, "qwen2_5_vl"), (318, 1874, 1819), "T", ((1874, 1819),)),
    Published("Qwen2.5-VL-32B", shape(5120, 64, 40, 8, "qwen2_5_vl"), (4675, 3094), "T"),
    Published("Qwen2-VL-2B", shape(1536, 28, 12, 2, "qwen2_vl"), (1073, 534, 940), "T"),
    Published("Qwen3-VL-2B", shape(2048, 28, 16, 8, "qwen3_vl"), (1793, 1999, 1401), "T"),
    Published("Qwen3-VL-4B", shape(2560, 36, 32, 8, "qwen3_vl"), (0,), "T", ((0, 4),)),
    Published("Qwen3-VL-8B", shape(4096, 36, 32, 8, "qwen3_vl"), (1838,), "T", ((1838, 2276),)),
    Published("InternVL3.5-1B", shape(1024, 28, 16, 8, "internvl", "internvl_chat"), (35, 13), "T"),
    Published("InternVL3.5-4B", shape(2560, 36, 32, 8, "internvl", "internvl_chat"), (4, 396, 0), "T"),
    Published("InternVL3.5-8B", shape(4096, 36, 32, 8, "internvl", "internvl_chat"), (2276, 233), "T"),
    Published("InternVL3.5-38B", shape(5120, 64, 64, 8, "internvl", "internvl_chat"), (731,), "T"),
    Published("LLaVA-MORE", shape(4096, 32, 32, 8, "llava_llama"), (788, 1384, 4062), "T"),
)


def published(model: Mapping[str, Any]) -> Published | None:
    """Return the row of the table for a model with these facts; other weights of the same shape look the same.

    Args:
        model: model_type, hidden_size, layers, num_heads, num_kv_heads.
    """
    for row in PUBLISHED:
        kinds, sizes = row.model["model_type"], {k: v for k, v in row.model.items() if k != "model_type"}
        if model.get("model_type") in kinds and all(model.get(key) == size for key, size in sizes.items()):
            return row
    return None


def published_dims(model: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the dimensions that the paper or its code gives for a model; None for others, unverified ones too."""
    row = published(model)
    return row.dims if row is not None and row.status != "T" else None
