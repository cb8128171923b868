"""FlashAttention-4 for what it can do: whole blocks of 128 keys in natural order, on Hopper and later.

`flash-attn-4` is a beta (extra `fa4`), so every process checks it against the oracle, per device and kind of heads,
before the first answer is used.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .index import Launch, SparseIndex, tile_count
from .inputs import AttentionInputs
from .reference import reference_attention

BLOCK = 128  # what its Hopper kernel wants for heads of up to 128 channels
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 2e-2}  # of values about 1


def refusal(inputs: AttentionInputs, launch: Launch, return_lse: bool = False) -> str:
    """Return why this back-end cannot run such a call, in words; empty if it can."""
    q, index = inputs.q, launch.index
    if not q.is_cuda or torch.cuda.get_device_capability(q.device) < (9, 0):
        return f"fa4 needs a GPU of the Hopper generation or later, got {q.device}; use backend='triton' or 'gather'"
    if q.dtype not in TOLERANCE or q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"fa4 takes float16 or bfloat16 heads of up to 128 channels, got {q.dtype} and {q.shape[-1]}"
    if torch.is_grad_enabled() and q.requires_grad:
        return "fa4 is used without its backward pass; call it under torch.no_grad()"
    rows = 2 * BLOCK if torch.cuda.get_device_capability(q.device)[0] in (10, 11) else BLOCK  # Blackwell pairs tiles
    if index.tile % rows or index.run != BLOCK:
        return f"fa4 needs tile a multiple of {rows} and run {BLOCK} here, got {index.tile} and {index.run}"
    named = ("col_ptr", "q_order", "k_order", "grid", "slash", "heads")
    has = [name for name in named if getattr(index, name) is not None] + ["keys"] * (inputs.keys is not None)
    if has:
        return f"fa4 knows only runs of keys in natural order, the index has {', '.join(has)}; use backend='triton'"
    lengths = [name for name in ("q_len", "k_len", "k_start", "softcap") if getattr(inputs, name) is not None]
    limits = {"causal_shift": launch.causal_shift, "key_min": launch.key_min, "row_step": launch.row_step - 1}
    asked = [name for name, value in limits.items() if isinstance(value, Tensor) or value] + lengths
    if asked:
        return f"fa4 cannot do {', '.join(asked)}; use backend='triton'"
    try:
        _package()
    except ImportError as error:
        return f"fa4 needs flash-attn-4 ({error}); pip install '.[fa4]' in a checkout of vlmopt has the version"
    return ""


def fa4_attention(inputs: AttentionInputs, launch: Launch, return_lse: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """Compute `sparse_attention` by FlashAttention-4 (as yet unpublished; CuTe kernels of Dao-AILab/flash-attention).

    Raises:
        ValueError: what `refusal` names; runs that do not start at a multiple of 128.
        RuntimeError: the installed package fails its self-test on this device.
    """
    if reason := refusal(inputs, launch):
        raise ValueError(reason)
    q = inputs.q
    with torch.cuda.device(q.device):
        _self_test(q.device, q.dtype, q.shape[-1], launch.index.tile)
        return _run(inputs, launch.index, return_lse)


def _run(inputs: AttentionInputs, index: SparseIndex, return_lse: bool) -> Tensor | tuple[Tensor, Tensor]:
    function, tables = _package()
    q, k, v = inputs.q, inputs.k, inputs.v
    counts = blocks(index, q.shape[1], tile_count(k.shape[2], BLOCK))
    sparse = tables(**counts, block_size=(index.tile, BLOCK))
    # Causal masking is asked for by name: with a trivial mask function block tables were ignored (pytorch#188322).
    out, lse = function(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), softmax_scale=inputs.scale, causal=True,
        block_sparse_tensors=sparse, return_lse=True,
    )  # fmt: skip
    return (out.transpose(1, 2), lse) if return_lse else out.transpose(1, 2)


def blocks(index: SparseIndex, heads: int, width: int) -> dict[str, Tensor]:
    """Return block tables of an index, masked and full.

    Counts Int[B, heads, T] and ascending block numbers Int[B, heads, T, n].

    Args:
        width: blocks that hold keys; later ones are dropped.

    Raises:
        ValueError: a run does not start at a multiple of its length.
    """
    if bool((index.run_start % index.run).any()):
        raise ValueError(f"fa4 needs runs that start at multiples of {index.run}; use backend='triton'")
    counts = index.run_ptr.diff(dim=-1)
    tile = torch.arange(counts.numel(), device=counts.device).repeat_interleave(counts.flatten())
    rank = torch.arange(len(tile), device=tile.device) - index.run_ptr[..., :-1].flatten()[tile]
    block = index.run_start.long() // index.run
    full = rank < index.run_full.flatten()[tile]
    tables: dict[str, Tensor] = {}
    for name, kind in (("mask", ~full), ("full", full)):
        own = kind & (block < width)
        key = (tile[own] * width + block[own]).sort().values  # ascending inside a tile: only the last may overhang
        count = torch.bincount(key // width, minlength=counts.numel())
        place = torch.arange(len(key), device=key.device) - (count.cumsum(0) - count)[key // width]
        table = torch.zeros(counts.numel(), max(1, int(count.max())), dtype=torch.int32, device=key.device)
        table[key // width, place] = (key % width).int()
        spread = heads // index.covered
        tables[f"{name}_block_cnt"] = count.int().view(counts.shape).repeat_interleave(spread, 1)
        tables[f"{name}_block_idx"] = table.view(*counts.shape, -1).repeat_interleave(spread, 1)
    return tables


def _package() -> tuple[Any, Any]:
    from flash_attn.cute import flash_attn_func
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    return flash_attn_func, BlockSparseTensorsTorch


@functools.cache
def _self_test(device: torch.device, dtype: torch.dtype, channels: int, tile: int) -> None:
    """Compare with the oracle: random blocks, an empty tile, few queries, an overhanging block, shared heads."""
    make = torch.Generator().manual_seed(0)
    rows, width, heads, key_heads = 2 * tile + 77, 3 * tile + 50, 4, 2
    q, k, v = (
        torch.randn(2, n, h, channels, generator=make).to(device, dtype).transpose(1, 2)
        for n, h in ((rows, heads), (width, key_heads), (width, key_heads))
    )
    tiles, count = tile_count(rows, tile), tile_count(width, BLOCK)
    keep = torch.rand(2, heads, tiles, count, generator=make) < 0.6
    keep[1, 2, 1] = False
    first = torch.arange(tiles)[:, None] * tile + width - rows  # position of a tile's first row
    full = keep & (torch.arange(1, count + 1) * BLOCK - 1 <= first)
    order = (keep.long() + full.long()).sort(stable=True, dim=-1, descending=True)  # full ones first
    run_ptr = torch.cat([torch.zeros(1, dtype=torch.long), keep.sum(-1).flatten().cumsum(0)])
    at = torch.arange(keep[..., 0].numel()).view(keep.shape[:-1])
    index = SparseIndex(
        tile=tile, run=BLOCK, run_ptr=torch.cat([run_ptr[at], run_ptr[at[..., -1:] + 1]], -1),
        run_start=(order.indices[order.values > 0] * BLOCK).int(), run_full=full.sum(-1).int(),
    ).to(device)  # fmt: skip
    inputs = AttentionInputs(q, k, v, channels**-0.5)
    got = _run(inputs, index, True)
    want = reference_attention(inputs, Launch(index), True)
    for name, a, b in zip(("output", "log-sum-exp"), got, want, strict=True):
        worst = (a.float() - b.float()).masked_fill(a == b, 0).abs().max()  # both -inf; a NaN stays one
        if not bool(worst <= TOLERANCE[dtype]):
            raise RuntimeError(
                f"flash-attn-4 fails its self-test on {device} for {dtype} and {channels} channels: {name} is off by "
                f"{float(worst):.3g}. Use backend='triton', or another version of flash-attn-4"
            )
