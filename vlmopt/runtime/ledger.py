"""What one call costs: raw times and tensors, collected in the hooks and turned into a report only when asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..families.base import Piece
from .context import VisualContext
from .slots import Slots


class Clock:
    """Read times: CUDA events where the model runs on one GPU (no synchronisation), the wall clock elsewhere."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda

    def now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms(self, start: Any, end: Any) -> float:
        if not self.cuda:
            return float(end - start) * 1e3
        end.synchronize()
        return float(start.elapsed_time(end))


@dataclass(eq=False)
class Page(Slots):
    """What passes over a prompt wrote down; features keep theirs in slots. Pairs are a start and an end in time."""

    contexts: list[VisualContext] = field(default_factory=list)
    vision: list[tuple[Any, Any]] = field(default_factory=list)
    scoring: list[tuple[Any, Any]] = field(default_factory=list)
    in_tower: list[tuple[Any, Any]] = field(default_factory=list)  # the share of scoring that ran inside the tower
    prefill: list[tuple[Any, Any]] = field(default_factory=list)
    query_lengths: list[tuple[int, int]] = field(default_factory=list)  # (batch, logical length) of every chunk
    key_lengths: list[int] = field(default_factory=list)  # physical keys per layer after the last chunk
    cache_bytes: int = 0
    prompt_tokens: Tensor | None = None  # Long[B]
    left: list[Tensor] = field(default_factory=list)  # Bool[B, q] of every chunk: rows that came out of the last layer

    def rows_left(self) -> Tensor:
        """Return Bool[B, L]: rows of the prompt that came out of the last layer, padding not among them."""
        return torch.cat(self.left, 1)


class Ledger:
    """The times of one call: the first page is the prompt's, until the first logits exist."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.start = clock, clock.now()
        self.page = Page()
        self.prompt: Page | None = None  # the prompt's page, from the first logits on
        self.skipped: dict[str, str] = {}  # what -> why, once each
        self.opened: Any = None  # when the pass of now began, while the prompt is read
        self.first_token: Any = None
        self.end: Any = None
        self.decode_steps = 0
        self.first_tokens = 1  # that the first logits gave
        self.new_tokens = 0

    def open_pass(self) -> bool:
        """Begin a pass of the decoder; return whether the prompt is still read."""
        prefill = self.first_token is None
        self.opened = self.clock.now() if prefill else None
        self.decode_steps += not prefill
        return prefill

    def close_pass(self) -> bool:
        """End a pass of the decoder; return whether the prompt was still read."""
        if self.opened is None:
            return False
        self.page.prefill.append((self.opened, self.clock.now()))
        return True

    @contextmanager
    def timed(self, pairs: list[tuple[Any, Any]]) -> Iterator[None]:
        """Append start and end of a `with` block to one of the page's lists."""
        start = self.clock.now()
        yield
        pairs.append((start, self.clock.now()))

    def close_prompt(self) -> None:
        """Note that the first logits exist.

        What later passes write, e.g. the prompt again without a cache, is set aside.
        """
        self.first_token = self.clock.now()
        self.prompt, self.page = self.page, Page()

    def close(self) -> None:
        """Note the end of the call."""
        self.end = self.clock.now()
        self.page = self.prompt or self.page


@dataclass(eq=False)
class Features(Slots):
    """What the vision encoder returned in this call: the pieces of its output, per modality, in order."""

    pieces: dict[str, list[Piece]] = field(default_factory=dict)
    depth: int = 0  # a video function may call the image function

    def clear(self) -> None:
        self.pieces.clear()
        self._slots.clear()
