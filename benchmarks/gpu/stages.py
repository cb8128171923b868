"""The stages of `run.py`, most worth first, each with its budget and its units, and the sizes that they run at."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import models
import sparse_prefill
import torch
from agreement import FAMILY_NAMES, family
from shapes import FULL, TOWER
from video_like import planted

from common import machine
from vlmopt.kernels.sparse_attention.triton import tuned

Units = dict[str, Callable[[], dict[str, Any]]]
KEEP = (0.5, 0.25, 0.1)


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    device: str
    dtype: torch.dtype
    toy: bool
    heads: tuple[int, int, int]  # query heads, key heads, channels of sparse attention
    lengths: tuple[int, ...]  # tokens of sparse attention
    patterns: tuple[str, ...]
    prompts: tuple[tuple[int, int], ...]  # tokens, decoder layers built: of a sparse prefill
    screen: tuple[int, int]  # pixels
    decoded: int  # tokens
    repeats: int

    @classmethod
    def h200(cls) -> Scale:
        return cls(
            "cuda", torch.bfloat16, False, (28, 4, 128), (16384, 32768, 65536, 131072, 262144),
            ("sampled", "min_p", "grid", "x_attention", "blocks 10 %"), ((32768, 4), (131072, 2)), (2560, 1600), 32, 7,
        )  # fmt: skip

    @classmethod
    def small(cls) -> Scale:
        return cls(
            "cpu", torch.float32, True, (3, 1, 64), (300,), ("sampled", "blocks 10 %"), ((300, 3),), (320, 200), 2, 1,
        )  # fmt: skip

    def build(self, name: str) -> tuple[Any, dict[str, Any]]:
        """Return a model of a real shape, whole on a GPU, and its prompt."""
        return models.build(
            name, *((2, 2) if self.toy else (FULL[name], TOWER[name])), self.device, self.dtype, self.toy
        )


@dataclass(frozen=True)
class Stage:
    """Units of one kind, in order."""

    name: str
    seconds: float  # after which no unit of it is begun
    units: Callable[[Scale], Units]


def correct(scale: Scale) -> Units:
    """Pruning in six families against the masked reference; the Triton kernel against the fp64 reference."""
    named: Units = {name: partial(family, name, scale.device, scale.dtype) for name in FAMILY_NAMES}
    return {"kernels": partial(kernels, scale), **named}


def kernels(scale: Scale) -> dict[str, Any]:
    q, k, d = scale.heads
    some: dict[str, Any] = {"names": ("grid", "vertical_slash"), "tokens": 200} if scale.toy else {}
    rows = sparse_prefill.check(scale.device, scale.dtype, (q // k, 1, d), **some)
    return {"rows": rows, "right": all(row["right"] for row in rows)}


def pruned(scale: Scale) -> Units:
    """First token, decoding, memory and hooks of whole models, dense and pruned."""
    return {name: partial(models.costs, name, scale, KEEP) for name in FULL}


def sparse(scale: Scale) -> Units:
    """Sparse attention against the fastest dense kernel, then the first token of a long prompt."""
    attention = {f"attention {n}": partial(sparse_attention, n, scale) for n in scale.lengths}
    return attention | {f"first token {n}": partial(sparse_prompt, n, layers, scale) for n, layers in scale.prompts}


def sparse_attention(tokens: int, scale: Scale) -> dict[str, Any]:
    tuned.cache_clear()
    prefill = planted(tokens, *scale.heads, scale.device, scale.dtype)
    rows = sparse_prefill.attention(prefill, scale.patterns, scale.repeats, scale.device, seconds=2)
    return {"tokens": tokens, "heads": scale.heads, "rows": rows}


def sparse_prompt(tokens: int, layers: int, scale: Scale) -> dict[str, Any]:
    names = [name for name in scale.patterns if not name.startswith("blocks")]
    found = sparse_prefill.first_token(tokens, layers, names, 3, scale.device, scale.dtype)
    return {"tokens": tokens, **found}


def screens(scale: Scale) -> Units:
    """Pixels and tokens of a whole screen left out."""
    return {"screen": partial(models.screen, scale)}


def published(scale: Scale) -> Units:
    """ZOO-Prune's setting: 160 of 2 880 tokens."""
    return {"zoo-prune": partial(models.zoo_prune, scale)}


STAGES = (
    Stage("correct", 90, correct),
    Stage("pruned", 150, pruned),
    Stage("sparse", 130, sparse),
    Stage("screens", 40, screens),
    Stage("published", 40, published),
)


def facts() -> dict[str, Any]:
    """Return what the figures are measured on."""
    return {**machine(), "triton": version("triton"), "cuda": torch.version.cuda}


def healthy() -> bool:
    """Return whether the device still answers; after an illegal access it does not."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def release() -> None:
    """Give back the memory of the last unit."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
