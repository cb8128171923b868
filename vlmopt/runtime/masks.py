"""Turn what is logical into what one physical layer takes, rows and masks, and rows back. Pure functions of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


def plain(mask: Any) -> Tensor:
    """Return a mask; raise `ValueError` where no rows and columns can be taken: of the blocks of FlexAttention."""
    if not isinstance(mask, Tensor):
        raise ValueError(f"attention masks of type {type(mask).__name__} cannot be cut; use attn_implementation='sdpa'")
    return mask


def take_rows(table: Tensor, log: Tensor) -> Tensor:
    """Gather `table` [..., B or 1, L, D] along L with `log` Long[B, W] -> [..., B, W, D]."""
    log = log.to(table.device)
    batch = torch.arange(log.shape[0], device=table.device)[:, None]
    if table.shape[-3] == 1:
        batch = torch.zeros_like(batch)
    return table[..., batch, log, :]


def scatter_rows(hidden: Tensor, log: Tensor, valid: Tensor | None, length: int) -> Tensor:
    """Scatter hidden [B, W, d] to logical indices `log`: [B, length, d]; fillers and dropped ones are zero."""
    if valid is not None:
        hidden = hidden * valid.to(hidden.device)[..., None].to(hidden.dtype)
    full = hidden.new_zeros(hidden.shape[0], length, hidden.shape[-1])
    return full.scatter_(1, log[..., None].expand_as(hidden), hidden)


def slots_seen(columns: Tensor, valid: Tensor | None, need: int) -> tuple[Tensor, Tensor | None]:
    """Return index and validity of the `need` slots that a layer returns: the last ones, or all and empty ones, -1."""
    empty = need - columns.shape[1]
    if empty <= 0:
        return columns[:, -need:], None if valid is None else valid[:, -need:]
    valid = torch.ones_like(columns, dtype=torch.bool) if valid is None else valid
    return pad(columns, (0, empty), value=-1), pad(valid, (0, empty))


def ragged_mask(rows: Tensor, columns: Tensor, valid: Tensor) -> Tensor:
    """Return the causal mask Bool[B, 1, q, kv] of logical row index [B, q], column index [B, kv] and key validity.

    Every row may see itself, so that no row is empty.
    """
    row, column = rows[:, None, :, None], columns[:, None, None, :]
    return (valid[:, None, None, :] & (column <= row)) | (column == row)


def gather_4d(mask: Tensor, rows: Tensor | None, columns: Tensor, valid: Tensor | None, past: int) -> Tensor:
    """Gather rows and columns of a logical mask [B or 1, H, L, past + L], Bool or additive float.

    rows: Long[B, q] logical offsets inside the chunk, None when the query rows are already the layer's own.
    columns: Long[B, kv] logical key index, -1 only where it is not valid; valid: Bool[B, kv] or None.
    """
    batch = columns.shape[0]
    columns = columns.to(mask.device)
    mask = mask.expand(batch, *mask.shape[1:])
    rows_ = torch.arange(mask.shape[2], device=mask.device).expand(batch, -1) if rows is None else rows.to(mask.device)
    where = torch.arange(batch, device=mask.device)[:, None, None]
    out = mask[where, :, rows_[:, :, None], columns.clamp_min(0)[:, None, :]].permute(0, 3, 1, 2).contiguous()
    if valid is None:
        return out
    keys = valid.to(mask.device)[:, None, None, :]
    if out.dtype != torch.bool:
        return out.masked_fill(~keys, torch.finfo(out.dtype).min)
    if rows is None:
        return out & keys
    own = columns[:, None, None, :] == (rows_ + past)[:, None, :, None]
    return (out & keys) | (own & ~keys)  # a filler sees itself, so that no row is empty; others what they may


def gather_2d(mask: Tensor, columns: Tensor, valid: Tensor | None) -> Tensor:
    """Gather columns of a key-padding mask [B, kv_logical] (FlashAttention's contract)."""
    out = mask.gather(1, columns.to(mask.device).clamp_min(0))
    return out if valid is None else out * valid.to(out.device, out.dtype)


def recurrent_mask(mask: Tensor | None, rows: Tensor | None, valid: Tensor | None) -> Tensor | None:
    """Return the mask [B, W] of a recurrent layer from the logical one [B, L]: this chunk only, fillers zeroed."""
    if mask is not None and mask.ndim != 2:  # 4.57 hands the causal mask to every layer
        mask = None
    if mask is not None and rows is not None:
        mask = mask.gather(1, rows.to(mask.device))
    if valid is None:
        return mask
    return valid.long() if mask is None else mask * valid.to(mask.device, mask.dtype)
