"""Compute a few rows of an attention matrix exactly, without the rest of it and without repeating keys."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCKED = torch.finfo(torch.float16).min  # additive masks use the finite minimum of their dtype, this is the largest


def attention_rows(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    first_row: int | None = None,
) -> Tensor:
    """Return attention weights of R query rows over all W keys: softmax(softcap(scaling q k^T) + mask).

    Args:
        query: [B, H, R, D] and key: [B, Hkv, W, D], rotated, H a multiple of Hkv, any float dtype.
        mask: None: causal. Bool [B|1, H|1, R, W]: True may attend. Float of that shape: added to the logits.
            [B, W]: key validity (non-zero may be attended), on top of causal.
        softcap: logits become softcap * tanh(logits / softcap).
        first_row: where causal, the key slot of row 0; None: the last row sees the last key.

    Returns:
        fp32 [B, H, R, W], rows sum to 1; a row without any allowed key is 0.

    Raises:
        ValueError: shapes that do not fit, or `first_row` with a mask that already says which row is which.
    """
    return masked_softmax(*masked_logits(query.float(), key.float(), mask, scaling, softcap, first_row))


def sees_all(rows: int, mask: Tensor | None, first_row: int | None) -> bool:
    """Return whether there is nothing to mask: a single row, the last one, and only real keys."""
    return rows == 1 and mask is None and first_row is None


def masked_logits(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    first_row: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the logits [B, H, R, W], and what is blocked, broadcast against them (None where nothing is).

    Blocked logits are the finite minimum of the dtype, which is that of the inputs.

    Arguments and errors as for `attention_rows`; query and key are of one dtype, fp32 or fp64.
    """
    batch, heads, rows, dim = query.shape
    kv_heads, width = key.shape[1], key.shape[2]
    if heads % kv_heads or (key.shape[0], key.shape[3]) != (batch, dim):
        raise ValueError(f"query {tuple(query.shape)} and key {tuple(key.shape)} do not fit")
    grouped = query.reshape(batch, kv_heads, -1, dim) * scaling  # [B, Hkv, G*R, D]
    product = (key @ grouped.mT).mT if rows == 1 else grouped @ key.mT  # one row: half the time on CPUs
    logits = product.reshape(batch, heads, rows, width)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if sees_all(rows, mask, first_row):
        return logits, None
    allowed, bias = read_mask(mask, (batch, heads, rows, width), first_row, key.device)
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    blocked = ~allowed
    return logits.masked_fill(blocked, torch.finfo(logits.dtype).min), blocked


def masked_softmax(logits: Tensor, blocked: Tensor | None) -> Tensor:
    """Return weights that are exactly 0 where blocked; a row that sees no key is 0 throughout."""
    weights = logits.softmax(-1)
    return weights if blocked is None else weights.masked_fill(blocked, 0.0)


def read_mask(
    mask: Tensor | None, shape: tuple[int, int, int, int], first_row: int | None, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Return (allowed Bool, bias or None), both broadcast against `shape` [B, H, R, W]."""
    batch, heads, rows, width = shape
    if mask is not None and mask.ndim == 4:
        fits = mask.shape[0] in (1, batch) and mask.shape[1] in (1, heads) and tuple(mask.shape[2:]) == (rows, width)
        if not fits:
            raise ValueError(f"mask {tuple(mask.shape)} does not fit attention {shape} [B, H, R, W]")
        if first_row is not None:
            raise ValueError(f"first_row={first_row} has no meaning with a 4-D mask; pass None")
        if mask.dtype == torch.bool:
            return mask, None
        return mask > BLOCKED, mask
    start = width - rows if first_row is None else first_row
    causal = torch.arange(width, device=device) <= torch.arange(start, start + rows, device=device)[:, None]
    if mask is None:
        return causal[None, None], None
    if tuple(mask.shape) != (batch, width):
        raise ValueError(f"mask {tuple(mask.shape)} must be [B, W] = {(batch, width)} or 4-D")
    return causal & mask.bool()[:, None, None, :], None
