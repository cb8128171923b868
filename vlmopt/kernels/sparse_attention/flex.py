"""FlexAttention for indices of aligned blocks: torch's own kernels, compiled on first use (a minute on CPU)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from .index import Launch, SparseIndex, tile_count
from .inputs import AttentionInputs


def refusal(inputs: AttentionInputs, launch: Launch, return_lse: bool = False) -> str:
    """Return why this back-end cannot run such a call, in words; empty if it can."""
    index = launch.index
    for name in ("col_idx", "q_order", "k_order", "grid", "slash", "heads"):
        if getattr(index, name) is not None:
            return f"flex knows blocks of keys for all heads, in order, not {name}; use backend='gather' or 'triton'"
    if inputs.keys is not None or inputs.softcap is not None:
        return "flex knows neither keys that stand for several nor a softcap; use backend='gather' or 'triton'"
    if return_lse and not inputs.q.is_cuda:
        return "flex returns no log-sum-exp on CPU; use backend='gather'"
    if bool((index.run_start % index.run != 0).any()):
        return f"flex needs runs that start at multiples of {index.run}; use backend='gather' or 'triton'"
    return ""


def flex_attention(inputs: AttentionInputs, launch: Launch, return_lse: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """Compute `sparse_attention` for blocks.

    Raises:
        ValueError: what `refusal` names.
    """
    if reason := refusal(inputs, launch, return_lse):
        raise ValueError(reason)
    index, q, k = launch.index, inputs.q, inputs.k
    least = inputs.key_first.clamp_min(launch.key_min)
    row = torch.arange(inputs.rows, device=q.device)
    stepped = row // launch.row_step * launch.row_step
    last = (stepped + (inputs.offset - launch.causal_shift)[:, None]).masked_fill(~inputs.real, -1)  # [B, Sq]

    def seen(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return (key >= least[b]) & (key <= last[b, row])

    result = _compiled()(
        q, k, inputs.v, block_mask=_blocks(index, q, k, seen), scale=inputs.scale,
        enable_gqa=q.shape[1] != k.shape[1], return_lse=return_lse,
    )  # fmt: skip
    out, lse = result if return_lse else (result, None)
    out = out.masked_fill(~inputs.real[:, None, :, None], 0)  # it may have met full blocks
    return out if lse is None else (out, lse.masked_fill(~inputs.real[:, None], -torch.inf))


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex.flex_attention)


def _blocks(index: SparseIndex, q: Tensor, k: Tensor, seen: Callable[..., Tensor]) -> flex.BlockMask:
    """Return full and masked blocks of every tile, from the table of runs; never from the mask itself."""
    count, columns = index.run_ptr.diff(dim=-1).flatten(), tile_count(k.shape[2], index.run)
    tile = torch.arange(len(count), device=q.device).repeat_interleave(count)
    number = torch.arange(len(tile), device=q.device) - (count.cumsum(0) - count)[tile]
    block = index.run_start[index.run_ptr[..., :-1].flatten()[tile] + number].long() // index.run
    full = number < index.run_full.flatten()[tile]
    tables = []
    for which in (~full, full):
        keep = torch.zeros(len(count), columns + 1, dtype=torch.int32, device=q.device)  # one more: behind the last key
        keep[tile[which], block[which].clamp_max(columns)] = 1
        keep = keep[:, :-1].view(*index.run_full.shape, columns).repeat_interleave(q.shape[1] // index.covered, 1)
        order = torch.argsort(keep, dim=-1, descending=True, stable=True).int()
        tables.append((keep.sum(-1, dtype=torch.int32), order))
    return flex.BlockMask.from_kv_blocks(
        *tables[0], *tables[1], BLOCK_SIZE=(index.tile, index.run), mask_mod=seen, seq_lengths=(q.shape[2], k.shape[2])
    )
