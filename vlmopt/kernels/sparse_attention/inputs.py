"""What one layer's attention computes on: queries, keys and values, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from .index import Keys, Launch, SparseIndex

Inputs = TypeVar("Inputs", bound="AttentionInputs")


@dataclass(frozen=True, eq=False)
class AttentionInputs:
    """Queries, keys and values of one layer: B samples, Hq query heads, Hk key heads, Sq query rows, W keys.

    Row r of a sample lies at position r + k_len - q_len, key j at j (bottom-right aligned). Right padding: q_len and
    k_len count what is real. Left padding: the first real key is k_start, and rows left of it are padding.
    """

    q: Tensor  # [B, Hq, Sq, D], rotated; any strides, channels next to one another; nothing is copied whole
    k: Tensor  # [B, Hk, W, D], Hk divides Hq
    v: Tensor  # [B, Hk, W, D]
    scale: float  # of the products
    q_len: Tensor | None = None  # Long[B], default Sq
    k_len: Tensor | None = None  # Long[B], default W
    k_start: Tensor | None = None  # Long[B], default 0
    keys: Keys | None = None  # positions and biases of keys that stand for several; W counts no positions then
    softcap: float | None = None  # c of c * tanh(scaled / c)

    def of(self: Inputs, launch: Launch) -> Inputs:
        """Return these inputs with the keys that a launch brings along in place of the layer's."""
        if launch.k is not None and launch.v is not None:
            real = torch.full((self.batch,), self.width, device=self.device) if self.k_len is None else self.k_len
            return replace(self, k=launch.k, v=launch.v, keys=launch.keys, k_len=real)
        return self if launch.keys is None else replace(self, keys=launch.keys)

    @property
    def batch(self) -> int:
        """B, the number of samples."""
        return self.q.shape[0]

    @property
    def rows(self) -> int:
        """Query rows Sq, padding among them."""
        return self.q.shape[2]

    @property
    def width(self) -> int:
        """Key slots W, padding among them."""
        return self.k.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the queries are."""
        return self.q.device

    @cached_property
    def key_end(self) -> Tensor:
        """Long[B]: real keys lie below it."""
        return self._each(self.k_len, self.width)

    @cached_property
    def key_first(self) -> Tensor:
        """Long[B]: real keys start here."""
        return self._each(self.k_start, 0)

    @cached_property
    def row_end(self) -> Tensor:
        """Long[B]: real rows lie below it."""
        return self._each(self.q_len, self.rows)

    @cached_property
    def offset(self) -> Tensor:
        """Long[B]: position of row 0 (may be negative: such rows are padding)."""
        return self.key_end - self.row_end

    @cached_property
    def position(self) -> Tensor:
        """Long[B, Sq]: position of every row."""
        return torch.arange(self.rows, device=self.device) + self.offset[:, None]

    @cached_property
    def real(self) -> Tensor:
        """Bool[B, Sq]: rows that are not padding."""
        inside = torch.arange(self.rows, device=self.device) < self.row_end[:, None]
        return inside & (self.position >= self.key_first[:, None])

    def _each(self, given: Tensor | None, default: int) -> Tensor:
        if given is None:
            return torch.full((self.batch,), default, dtype=torch.long, device=self.device)
        return given.to(self.device, torch.long)


def shared_refusal(name: str, inputs: AttentionInputs, index: SparseIndex) -> str:
    """Return why a back-end that only goes forward, and lists slash keys apart from the grid's, cannot run a call."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in (inputs.q, inputs.k, inputs.v)):
        return f"{name} has no backward pass; call it under torch.no_grad(), or use backend='reference'"
    if index.slash is not None and index.grid is not None and index.k_order is not None:
        return f"{name} cannot tell which slash keys lie on a grid of reordered keys; list the grid as columns"
    return ""
