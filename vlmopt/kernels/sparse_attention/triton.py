"""Launches of the GPU kernel. `TRITON_INTERPRET=1`, set before Triton is first imported, runs it on CPU tensors."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from .index import Keys, Launch
from .inputs import AttentionInputs, shared_refusal
from .triton_kernel import sparse_kernel

LOG2E = math.log2(math.e)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SIZES = (16, 32, 64, 128, 256)  # of tiles and runs
WIDEST = 128 * 128  # fp32 values of a tile
HEADS = {16: (16, 0), 32: (32, 0), 64: (64, 0), 80: (64, 16), 96: (64, 32), 128: (128, 0)}  # split, not padded


CONFIGS = [
    triton.Config({"BLOCK": block}, num_warps=warps, num_stages=stages)
    for warps in (8, 4)
    for block, stages in ((128, 3), (64, 3), (64, 2), (32, 2), (16, 2))
]


def _fitting(configs: list[Any], named: dict[str, Any], **more: Any) -> list[Any]:
    """Return blocks no longer than a run, and small ones where nothing else fits.

    They have enough warps to hold the sums of a tile.
    """
    tile, run = more["TILE"], more["RUN"]
    least = min(run, 32 if named["q"].dtype is torch.float32 else 64)
    warps = [8] * (tile >= 128) + [4] * (tile * more["BODY"] <= 64 * 128)
    return [c for c in configs if least <= c.kwargs["BLOCK"] <= run and c.num_warps in warps]


@functools.cache
def tuned() -> Any:
    """Return the kernel with a measured choice of block, warps and stages.

    The choice is remembered per process and never keyed on lengths.
    """
    key = ["BODY", "TAIL", "TILE", "RUN", "HAS_COLS", "HAS_ORDER"]  # and the types of the tensors
    return triton.autotune(CONFIGS, key, prune_configs_by={"early_config_prune": _fitting})(sparse_kernel)


def refusal(inputs: AttentionInputs, launch: Launch, return_lse: bool = False) -> str:
    """Return why this back-end cannot run such a call, in words; empty if it can."""
    q, keys, index = inputs.q, inputs.keys, launch.index
    interpreted = isinstance(sparse_kernel, InterpretedFunction)
    if not q.is_cuda and not interpreted:
        return f"triton needs CUDA tensors, got {q.device}; use backend='gather'"
    if interpreted and q.dtype is torch.bfloat16:
        return "Triton's interpreter multiplies bfloat16 wrongly; use float32 or float16, or a GPU"
    if reason := shared_refusal("triton", inputs, index):
        return reason
    if q.dtype not in DTYPES or q.shape[-1] not in HEADS:
        known = f"{', '.join(map(str, DTYPES))} with heads of {sorted(HEADS)} channels"
        return f"triton knows {known}, got {q.dtype} and {q.shape[-1]}; use backend='gather'"
    if index.tile not in SIZES or index.run not in SIZES:
        return f"triton needs tile and run in {SIZES}, got {index.tile} and {index.run}"
    if q.dtype is torch.float32 and index.tile * q.shape[-1] > WIDEST and not interpreted:
        return f"fp32 tiles of {index.tile} rows do not fit a GPU's shared memory; use tile=128, or bfloat16"
    if index.slash is not None and keys is not None and keys.key_position is not None:
        return "slash needs keys whose positions are their indices; leave out keys.key_position"
    return ""


def triton_attention(
    inputs: AttentionInputs, launch: Launch, return_lse: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute `sparse_attention` on a GPU (or in Triton's interpreter).

    Slashes are cheapest where the rows of a tile share position % stride: a tile pays once for every such class.

    Returns:
        [B, H, Sq, D] in the dtype of q, stored as [B, Sq, H, D]; with `return_lse` also fp32 [B, H, Sq].

    Raises:
        ValueError: what `refusal` names, or heads whose channels do not lie next to one another.
    """
    q, k, v, index = inputs.q, inputs.k, inputs.v, launch.index
    if reason := refusal(inputs, launch):
        raise ValueError(reason)
    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.stride(-1) != 1:
            raise ValueError(f"{name} needs unit stride in its last dimension, got strides {t.stride()}")
    (batch, q_heads, rows, d), (_, k_heads, width, _) = q.shape, k.shape
    heads, group = q_heads if index.heads is None else index.covered, q_heads // k_heads
    make = q.new_empty if index.q_order is None else q.new_zeros  # an order may leave rows out
    out = make(batch, rows, heads, d).transpose(1, 2)
    lse = q.new_full((batch, heads, rows), -math.inf, dtype=torch.float32) if return_lse else None
    if index.tiles == 0:
        return (out, lse) if lse is not None else out

    q_order, k_order = _spread(index.q_order, index.covered), _spread(index.k_order, k_heads)
    keys = inputs.keys or Keys()
    position, bias = _spread(keys.key_position, k_heads), _spread(keys.bias, k_heads)
    key_min, k_first = (0, launch.key_min) if isinstance(launch.key_min, Tensor) else (launch.key_min, None)
    lists = (index.run_ptr, index.run_start, index.run_full, index.col_ptr, index.col_idx)
    per_head = (index.grid, index.slash, index.heads)
    per_sample = (inputs.q_len, inputs.k_len, inputs.k_start, k_first)
    arguments = (
        q, k, v, out, lse, *map(_dense, lists), q_order, k_order, *map(_dense, per_head + per_sample), position, bias,
        inputs.scale * LOG2E, inputs.softcap and inputs.softcap * LOG2E, launch.causal_shift, key_min, launch.row_step,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        *_strides(q_order), *_strides(k_order), *_strides(position), *_strides(bias),
        heads, index.tiles, rows, width, rows if q_order is None else q_order.shape[2],
        width if k_order is None else k_order.shape[2],
    )  # fmt: skip
    body, tail = HEADS[d]
    constants: dict[str, Any] = {
        "G": group, "SHARED": heads // index.covered, "TOGETHER": math.gcd(heads, group), "TILE": index.tile,
        "RUN": index.run, "BODY": body, "TAIL": tail, "HAS_COLS": index.col_ptr is not None,
        "HAS_ORDER": q_order is not None or k_order is not None,
    }  # fmt: skip
    programs = (batch * heads * index.tiles,)
    if isinstance(sparse_kernel, InterpretedFunction):
        sparse_kernel[programs](*arguments, **constants, BLOCK=min(64, index.run))
    else:
        with torch.cuda.device(q.device):
            tuned()[programs](*arguments, **constants)
    return (out, lse) if lse is not None else out


def _dense(table: Tensor | None) -> Tensor | None:
    return None if table is None else table.contiguous()


def _spread(table: Tensor | None, heads: int) -> Tensor | None:
    """Return [B, heads, n] view of [B, 1 | heads, n] with unit stride in n."""
    if table is None:
        return None
    return (table if table.stride(-1) == 1 else table.contiguous()).expand(-1, heads, -1)


def _strides(table: Tensor | None) -> tuple[int, int]:
    return (0, 0) if table is None else (table.stride(0), table.stride(1))
