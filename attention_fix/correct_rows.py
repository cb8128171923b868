"""Attention of a few rows with corrections: logits, edits, softmax, edits, product with the values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .attention_rows import masked_logits, masked_softmax, sees_all
from .base import RowCorrection, RowView, no_rows

STAGES = ("logits", "weights")
BUFFERS = 5  # tensors of the size of the logits that exist at once, those of an edit among them

Edit = tuple[RowCorrection, RowView]
Observe = Callable[[RowCorrection, Tensor, RowView, Tensor], None]


def correct_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    edits: Sequence[Edit],
    *,
    softcap: float | None = None,
    first_row: int | None = None,
    budget: int = 64 * 2**20,
    observe: Observe | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the attention output of R query rows after `edits`, and which rows and heads the edits changed.

    Rows go through in pieces, so that tensors of the size of the logits take at most `budget` bytes together (one row
    at least); keys and values are never repeated. fp64 inputs are computed in fp64, all others in fp32. An edit reaches
    no further than its view's `rows`, and opens no key that the mask closes.

    Args:
        query: [B, H, R, D], key: [B, Hkv, K, D] and value: [B, Hkv, K, Dv], rotated, H a multiple of Hkv.
        mask, softcap, first_row: as for `attention_rows`.
        edits: corrections with what they are told of all R rows, in the order in which they act: logits, then weights.
        observe: called piece by piece with a correction, the values before its edit, its view, and what it edited.

    Returns:
        [B, R, H, Dv] in the dtype of `value`, Bool[B, H, R].

    Raises:
        ValueError: shapes that do not fit, a budget below 1, edits of logits after edits of weights.
    """
    batch, heads, rows, _ = query.shape
    width = key.shape[2]
    check(edits, (batch, heads, rows, width), budget)
    if value.shape[:3] != key.shape[:3]:
        raise ValueError(f"key {tuple(key.shape)} and value {tuple(value.shape)} do not fit")
    dtype = torch.promote_types(query.dtype, torch.float32)
    key, spread = key.to(dtype), value.to(dtype)
    size = max(budget // (BUFFERS * batch * heads * width * dtype.itemsize), 1)
    start = width - rows if first_row is None else first_row
    outputs, changes = [], []
    for low in range(0, max(rows, 1), size):
        high = min(low + size, rows)
        whole = mask is None or mask.ndim != 4  # such a mask says nothing of rows
        own = query if high - low == rows else query[:, :, low:high]
        piece = mask if mask is None or whole else mask[:, :, low:high]
        first = start + low if whole and not sees_all(rows, mask, first_row) else first_row
        values, blocked = masked_logits(own.to(dtype), key, piece, scaling, softcap, first)
        views = [(correction, part(view, low, high)) for correction, view in edits]
        values, changed = apply("logits", values, None, views, observe)
        if blocked is not None and any(correction.stage == "logits" for correction, _ in edits):
            values = values.masked_fill(blocked, torch.finfo(dtype).min)
        values = masked_softmax(values, blocked)
        values, changed = apply("weights", values, changed, views, observe)
        grouped = values.reshape(batch, key.shape[1], -1, width)  # [B, Hkv, G*R, K]
        product = (grouped @ spread).view(batch, heads, high - low, value.shape[3])
        outputs.append(product.transpose(1, 2).to(value.dtype))
        changes.append(no_rows(values) if changed is None else changed)
    return joined(outputs, 1), joined(changes, 2)


def apply(
    stage: str, values: Tensor, changed: Tensor | None, edits: Sequence[Edit], observe: Observe | None
) -> tuple[Tensor, Tensor | None]:
    """Return the values after the edits of one stage, and Bool[B, H, R] of the rows that were changed so far."""
    for correction, view in edits:
        if correction.stage == stage:
            after, edited = correction.edit(values, view)
            edited = edited & view.rows[:, None]
            if observe is not None:
                observe(correction, values, view, edited)
            values = torch.where(edited[..., None], after, values)
            changed = edited if changed is None else changed | edited
    return values, changed


def part(view: RowView, start: int, stop: int) -> RowView:
    """Return the view of rows start..stop (exclusive)."""
    if stop - start == view.rows.shape[1]:
        return view
    allowed = None if view.allowed is None else view.allowed[:, :, start:stop]
    return replace(view, allowed=allowed, rows=view.rows[:, start:stop], known={})


def joined(pieces: Sequence[Tensor], dim: int) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(tuple(pieces), dim)


def check(edits: Sequence[Edit], shape: tuple[int, int, int, int], budget: int) -> None:
    """Raise `ValueError` for edits out of order, edits that know other rows or keys, or no memory to use."""
    batch, heads, rows, width = shape
    if budget < 1:
        raise ValueError(f"budget={budget} must be at least 1 byte")
    stages = [correction.stage for correction, _ in edits]
    if stages != sorted(stages, key=STAGES.index):
        names = ", ".join(f"{correction.name} ({correction.stage})" for correction, _ in edits)
        raise ValueError(f"edits of logits come before edits of weights, got {names}")
    for correction, view in edits:
        allowed = (1, 1, rows, width) if view.allowed is None else tuple(view.allowed.shape)
        fits = allowed[0] in (1, batch) and allowed[1] in (1, heads) and allowed[2:] == (rows, width)
        if not fits or tuple(view.rows.shape) != (batch, rows) or view.image.shape[-1] != width:
            raise ValueError(
                f"{correction.name}: a view of allowed {allowed} and rows {tuple(view.rows.shape)} does not fit "
                f"attention {shape} [B, H, R, K]"
            )
