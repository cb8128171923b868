"""Rows and keys by modality: what patterns with boundaries between text and vision share."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from ..sparse_attention.index import Launch, SparseIndex
from .base import Pattern, Prefill
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
    """Rows Long[B, n] and keys Long[B, m] of each class, ascending, -1 after the last; padding is in none.

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
    """Long[B, most]: where each row of Bool[B, n] is True, ascending, -1 after the last."""
    n = mask.shape[1]
    where = torch.arange(n, device=mask.device).where(mask, n).sort(-1).values[:, : int(mask.sum(-1).amax())]
    return where.where(where < n, -1)


def join_rows(launches: list[Launch]) -> list[Launch]:
    """The launches with those in one that differ in their rows only: no rows meet, so nothing need be merged."""
    joined: dict[tuple[object, ...], list[SparseIndex]] = {}
    rest = []
    for launch in launches:
        index = launch.index
        limits = launch.causal_shift or launch.row_step > 1 or launch.key_min is not 0  # noqa: F632
        if limits or index.grid is not None or index.q_order is None or index.q_order.shape[1] > 1:
            rest.append(launch)
        else:
            joined.setdefault((index.tile, index.run, index.covered, id(index.heads)), []).append(index)
    return [Launch(_stacked(parts)) for parts in joined.values()] + rest
