"""What a pattern knows of one layer's prefill."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..sparse_attention.inputs import AttentionInputs

SINKS = 4  # first real keys that may be an attention sink (StreamingLLM, arXiv 2309.17453)


@dataclass(frozen=True, eq=False, kw_only=True)
class Prefill(AttentionInputs):
    """The inputs of one layer's prefill, the H heads to build for, and what is known of its tokens."""

    heads: Tensor  # Long[H]: query heads to build for, ascending
    modality: Tensor | None = None  # Long[B, W] of keys: 0 text, 1 vision, ...; None: all of one kind
    frame: int | None = None  # tokens from one frame to the next, where known and constant
    row: int | None = None  # tokens per row of patches, where known

    def sample(self, b: int) -> Prefill:
        """Return one sample without the padding to its right; reads the lengths on the host."""
        rows, keys = (int(end[b]) for end in (self.row_end, self.key_end))
        start = None if self.k_start is None else self.k_start[b : b + 1]
        modality = None if self.modality is None else self.modality[b : b + 1, :keys]
        q, k, v = self.q[b : b + 1, :, :rows], self.k[b : b + 1, :, :keys], self.v[b : b + 1, :, :keys]
        return replace(self, q=q, k=k, v=v, q_len=None, k_len=None, k_start=start, modality=modality)

    @cached_property
    def key_heads(self) -> Tensor:
        """Long[H]: the key head that each head of `heads` reads."""
        return self.heads // (self.q.shape[1] // self.k.shape[1])

    @cached_property
    def all_heads(self) -> bool:
        """Whether `heads` names every query head, so that nothing needs to be selected."""
        return len(self.heads) == self.q.shape[1]

    @cached_property
    def sink_end(self) -> Tensor:
        """Long[B]: the sink lies left of it.

        Real models put any share of every row's mass on their first keys. Patterns keep these keys and leave them out
        of every estimate: what a row needs of the rest does not depend on how much of it the sink takes.
        """
        return self.key_first + SINKS

    @cached_property
    def row_modality(self) -> Tensor:
        """Long[B, Sq]: modality of every row; 0 for padding."""
        if self.modality is None:
            return torch.zeros_like(self.position)
        kinds = self.modality.to(self.device).gather(1, self.position.clamp(0, self.width - 1))
        return torch.where(self.real, kinds, 0)
