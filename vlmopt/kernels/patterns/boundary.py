"""Rows and keys by modality: what patterns with boundaries between text and vision share."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from ..sparse_attention.index import Launch, SparseIndex
from .base import Pattern
from .prefill import Prefill
from .tables import glue
from .view import ViewPattern, tiled

CLASSES = ("text", "vision")  # modality 0, and everything else


def check_parts(owner: Pattern) -> None:
    """Raise `TypeError` for a part that cannot be built for some rows only."""
    for f in fields(owner):
        part = getattr(owner, f.name)
        if "kind" not in f.metadata and part is not None and not isinstance(part, ViewPattern):
            raise TypeError(
                f"{owner.name}: {f.name} must be a pattern for parts of a prompt (dense, a_shape, tri_shape, "
                f"vertical_slash, grid or min_p) or None, got {part!r}"
            )


def slots_of(prefill: Prefill, name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return rows Long[B, n] and keys Long[B, m] of each class, ascending, -1 after the last; padding is in none.

    Raises:
        ValueError: the prefill does not say of which modality its tokens are.
    """
    if prefill.modality is None:
        raise ValueError(
            f"{name}: the modality of the tokens is not known; give Prefill.modality, or use another pattern"
        )
    key = torch.arange(prefill.width, device=prefill.device)
    inside = (key >= prefill.key_first[:, None]) & (key < prefill.key_end[:, None])
    kinds = prefill.modality.to(prefill.device).clamp(0, 1)
    row_kinds = prefill.row_modality.clamp(0, 1)
    rows = [gathered(prefill.real & (row_kinds == c)) for c in range(len(CLASSES))]
    return rows, [gathered(inside & (kinds == c)) for c in range(len(CLASSES))]


def gathered(mask: Tensor) -> Tensor:
    """Return Long[B, most]: where each row of Bool[B, n] is True, ascending, -1 after the last."""
    n = mask.shape[1]
    where = torch.arange(n, device=mask.device).where(mask, n).sort(-1).values[:, : int(mask.sum(-1).amax())]
    return where.where(where < n, -1)


def join_rows(launches: list[Launch]) -> list[Launch]:
    """Merge launches over all keys that differ in their rows only into one, so that nothing has to be merged later."""
    alike: dict[tuple[int, ...], list[SparseIndex]] = {}
    rest = []
    for launch in launches:
        index = launch.index
        if index.grid is None and index.q_order is not None and index.q_order.shape[1] == 1:
            alike.setdefault((index.tile, index.run, index.covered, id(index.heads)), []).append(index)
        else:
            rest.append(launch)
    return [Launch(stacked(parts)) for parts in alike.values()] + rest


def stacked(parts: list[SparseIndex]) -> SparseIndex:
    """Stack the tiles of all parts, which share sizes and heads and have neither grid nor slash, in one index."""
    orders = [tiled(index.q_order, index.tile, -1).flatten(2) for index in parts if index.q_order is not None]
    none = parts[0].run_start.new_zeros(0)
    columns = [
        (index.run_ptr * 0, none) if index.col_ptr is None or index.col_idx is None else (index.col_ptr, index.col_idx)
        for index in parts
    ]
    run_ptr, run_start = glue([(index.run_ptr, index.run_start) for index in parts])
    col_ptr, col_idx = glue(columns)
    full = torch.cat([index.run_full for index in parts], -1)
    q_order = torch.cat(orders, -1)
    return SparseIndex(
        parts[0].tile, parts[0].run, run_ptr, run_start, full, col_ptr, col_idx, q_order, heads=parts[0].heads
    )
