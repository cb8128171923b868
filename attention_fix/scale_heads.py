"""Multiply each head's output by a gain, before the output projection."""

from __future__ import annotations

from torch import Tensor


def scale_heads(out: Tensor, gain: Tensor, rows: Tensor | None = None) -> Tensor:
    """Multiply head outputs [B, Q, H, D] by `gain`; heads of gain 1 and rows left out keep their bits.

    Args:
        out: [B, Q, H, D] of any float dtype, which is also the result's; the product is made in fp32 at least.
        gain: fp32 [B, H]. rows: Bool[B, Q] of the rows to scale; None: all.
    """
    scale = gain[:, None, :, None]
    if rows is not None:
        scale = scale.where(rows[:, :, None, None], 1.0)
    return (out * scale).to(out.dtype)
