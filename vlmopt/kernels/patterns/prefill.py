"""What a pattern is told of one layer's prefill."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SINKS = 4  # first real keys that may be an attention sink (StreamingLLM, arXiv 2309.17453)


@dataclass(frozen=True, eq=False)
class Prefill:
    """One layer's prefill: B samples, Hq query heads, Hk key heads, Sq query rows, W keys, H heads to build for.

    Row r of a sample lies at position r + k_len - q_len, key j at j (bottom-right aligned). Right padding: q_len and
    k_len count what is real. Left padding: the first real key is k_start, and rows left of it are padding.
    """

    q: Tensor  # [B, Hq, Sq, D], RoPE applied
    k: Tensor  # [B, Hk, W, D]
    scale: float
    heads: Tensor  # Long[H]: query heads to build for, ascending
    modality: Tensor | None = None  # Long[B, W] of keys: 0 text, 1 vision, ...; None: all of one kind
    v: Tensor | None = None
    q_len: Tensor | None = None  # Long[B], default Sq
    k_len: Tensor | None = None  # Long[B], default W
    k_start: Tensor | None = None  # Long[B], default 0
    frame: int | None = None  # tokens from one frame to the next, where known and constant
    row: int | None = None  # tokens per row of patches, where known

    @property
    def batch(self) -> int:
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
        return self.q.device

    @cached_property
    def key_heads(self) -> Tensor:
        """Long[H]: the key head that each head of `heads` reads."""
        return self.heads // (self.q.shape[1] // self.k.shape[1])

    @cached_property
    def all_heads(self) -> bool:
        """`heads` names every query head, so nothing need be selected."""
        return len(self.heads) == self.q.shape[1]

    @cached_property
    def key_end(self) -> Tensor:
        """Long[B]: real keys lie below it."""
        return self._each(self.k_len, self.width)

    @cached_property
    def key_first(self) -> Tensor:
        """Long[B]: real keys start here."""
        return self._each(self.k_start, 0)

    @cached_property
    def sink_end(self) -> Tensor:
        """Long[B]: the sink lies left of it.

        Real models put any share of every row's mass on their first keys. Patterns keep these keys and leave them out
        of every estimate: what a row needs of the rest does not depend on how much of it the sink takes.
        """
        return self.key_first + SINKS

    @cached_property
    def row_end(self) -> Tensor:
        """Long[B]: real rows lie below it."""
        return self._each(self.q_len, self.rows)

    @cached_property
    def offset(self) -> Tensor:
        """Long[B]: position of row 0 (may be negative: such rows are padding)."""
        return self.key_end - self.row_end

    def _each(self, given: Tensor | None, default: int) -> Tensor:
        if given is None:
            return torch.full((self.batch,), default, dtype=torch.long, device=self.device)
        return given.to(self.device, torch.long)

    @cached_property
    def position(self) -> Tensor:
        """Long[B, Sq]: position of every row."""
        return torch.arange(self.rows, device=self.device) + self.offset[:, None]

    @cached_property
    def real(self) -> Tensor:
        """Bool[B, Sq]: rows that are no padding."""
        inside = torch.arange(self.rows, device=self.device) < self.row_end[:, None]
        return inside & (self.position >= self.key_first[:, None])

    @cached_property
    def row_modality(self) -> Tensor:
        """Long[B, Sq]: modality of every row; 0 for padding."""
        if self.modality is None:
            return torch.zeros_like(self.position)
        kinds = self.modality.to(self.device).gather(1, self.position.clamp(0, self.width - 1))
        return torch.where(self.real, kinds, 0)
