"""Attention over parts of the keys, put together again with other shares: corrections without the whole matrix.

For disjoint sets X of keys that cover all of them, o = sum_X m_X o_X with m_X = exp(lse_X - lse). A correction that
multiplies the weights of a set by f_X, rows still summing to 1, is o' = sum_X f_X m_X o_X: any kernel that returns the
logsumexp of its rows can compute it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmopt.attention_fix.attention_rows import masked_logits

Part = tuple[Tensor, Tensor]  # o [B, H, R, Dv], lse [B, H, R]


def partition_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    mask: Tensor | None,
    scaling: float,
    *,
    softcap: float | None = None,
    first_row: int | None = None,
) -> Part:
    """Attention of R rows over the chosen keys alone, and the logsumexp of their logits: the explicit reference.

    Args:
        query, key, value, mask, scaling, softcap, first_row: as for `correct_rows`. keys: Bool[B, K], the part.

    Returns:
        o [B, H, R, Dv] and lse [B, H, R], fp64 for fp64 inputs, else fp32; 0 and -inf in rows that see none of them.

    Raises:
        ValueError: shapes that do not fit.
    """
    batch, heads, rows, _ = query.shape
    dtype = torch.promote_types(query.dtype, torch.float32)
    logits, blocked = masked_logits(query.to(dtype), key.to(dtype), mask, scaling, softcap, first_row)
    if tuple(keys.shape) != (batch, key.shape[2]):
        raise ValueError(f"keys {tuple(keys.shape)} must be [B, K] = {(batch, key.shape[2])}")
    outside = ~keys[:, None, None]
    logits = logits.masked_fill(outside if blocked is None else blocked | outside, -torch.inf)
    lse = logits.logsumexp(-1)
    weights = (logits - finite(lse)[..., None]).exp().view(batch, key.shape[1], -1, key.shape[2])
    return (weights @ value.to(dtype)).view(batch, heads, rows, -1), lse


def masses(lses: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Share of attention of each part from its lse [B, H, R]; all 0 in a row that sees no key."""
    total = finite(torch.stack(tuple(lses)).logsumexp(0))
    return tuple((lse - total).exp() for lse in lses)


def remix(parts: Sequence[Part], factors: Sequence[Tensor | float]) -> Tensor:
    """sum_X f_X m_X o_X [B, H, R, Dv]; with all factors 1 the attention over all keys.

    Args:
        parts: (o, lse) of disjoint sets of keys that cover what the rows see. factors: one number or [B, H, R] each;
            their sum weighted by the masses is 1 where rows are to keep summing to 1.

    Raises:
        ValueError: not as many factors as parts, or no part.
    """
    if not parts or len(parts) != len(factors):
        raise ValueError(
            f"{len(parts)} parts and {len(factors)} factors; give one factor for each part, and one part at least"
        )
    shares = masses([lse for _, lse in parts])
    mixed = [(factor * share)[..., None] * out for (out, _), share, factor in zip(parts, shares, factors, strict=True)]
    return torch.stack(mixed).sum(0)


def finite(lse: Tensor) -> Tensor:
    """0 in place of the -inf of rows that see no key, so that exp(-inf - lse) is 0 and not NaN."""
    return lse.masked_fill(lse == -torch.inf, 0.0)
