"""What one call costs: raw marks and tensors, collected in the hooks and turned into a report only when asked."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import compat
from .context import Step, VisualContext
from .outer import Features, OuterArguments

if TYPE_CHECKING:
    from .correct import Record
    from .marks import Marks
    from .session import Session
    from .sparse import Ran


class Clock:
    """Marks in time: CUDA events where the model runs on one GPU (no synchronisation), the wall clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms(self, start: Any, end: Any) -> float:
        if not self.cuda:
            return (end - start) * 1e3
        end.synchronize()
        return float(start.elapsed_time(end))


@dataclass
class Cut:
    """One selector's work on one prefill chunk."""

    chunk: int  # running number of the pruned prefill inside the call
    layer: int
    method: str
    keep: Tensor  # Bool[B, L] over logical places: visual tokens that stay
    before: Tensor  # Bool[B, L]: visual tokens that were offered
    markers: Tensor | None  # Bool[B, L] places overwritten by PosPad markers
    requested: list[int]  # per row
    scores: list[Tensor | None]  # per row, fp32 over the offered tokens
    stats: list[dict[str, Any]]
    origin: list[Tensor | None]  # per row, Long over the offered tokens: the one into which each was merged, or -1
    written: Tensor | None = None  # Bool[B, L] places that carry merged tokens


OF_PROMPT = ("contexts", "cuts", "vision", "patches", "scoring", "probing", "prefill", "sparse")


@dataclass
class Call:
    """One `generate`, or one bare forward. Held in a context variable while it runs; the session keeps the last."""

    session: Session
    clock: Clock
    by_generate: bool
    prompt_length: int | None = None
    prompt_mask: Tensor | None = None  # Bool[B, L] that `generate` was given; with static caches models see 4-D ones
    prompt_ids: Tensor | None = None  # Long[B, L] that `generate` was given
    around: Call | None = None  # of another model, inside which a bare forward runs
    began: int | None = None  # length of the cache before the first chunk
    cache: Any = None  # of the sequence asked for, while the call runs
    prompt: dict[str, Any] = field(default_factory=dict)  # what `OF_PROMPT` names, from the first logits on
    start: Any = None
    end: Any = None
    first_token: Any = None
    outer: OuterArguments | None = None
    features: Features = field(default_factory=Features)
    contexts: list[VisualContext] = field(default_factory=list)
    given_images: bool = False  # `generate` was given pixels
    saw_image: bool = False  # in any of its passes, also in one that began anew since
    cuts: list[Cut] = field(default_factory=list)
    vision: list[tuple[Any, Any]] = field(default_factory=list)
    patches: list[tuple[int, int]] = field(default_factory=list)  # (given, encoded) per run of the tower
    scoring: list[tuple[Any, Any]] = field(default_factory=list)
    probing: list[tuple[Any, Any]] = field(default_factory=list)  # the share of scoring that ran inside the tower
    prefill: list[tuple[Any, Any]] = field(default_factory=list)
    decode_steps: int = 0
    new_tokens: int = 0
    open_mark: Any = None
    prompt_done: bool = False
    query_lengths: list[tuple[int, int]] = field(default_factory=list)  # (batch, logical length) of every prefill chunk
    key_lengths: list[int] = field(default_factory=list)  # physical keys per layer after the last prefill chunk
    cache_bytes: int = 0
    prompt_tokens: Tensor | None = None  # Long[B]
    skipped: dict[str, str] = field(default_factory=dict)  # what -> why, once each
    sparse: dict[int, list[Ran]] = field(default_factory=dict)  # layer -> its sparse prefills, chunk by chunk
    records: dict[tuple[str, int], Record] = field(default_factory=dict)  # (correction, layer) -> what it did
    marks: Marks | None = None  # of the pass that ran last
    sinks: dict[int, Tensor] = field(default_factory=dict)  # layer -> Bool[B, n] over logical places, from `marks`
    branches: str | None = None  # why rows of one step are not yet the text: beams, candidates of assisted decoding
    generated: Tensor | None = None  # Long[B, n] of this call, where a method watches; candidates at its end
    tripped: Tensor | None = None  # Bool[B] samples whose text began to repeat itself
    divergence: list[Tensor] = field(default_factory=list)  # fp32 [B] per generated token, where a method traces it

    def aside(self, cache: Any, ids: Tensor | None) -> bool:
        """Whether a pass is of another sequence than the one asked for, e.g. the unconditional one of a guidance scale.

        Sequences are told apart by their cache, without one by how they begin.
        """
        if self.began is None:
            return False
        if cache is not None or self.cache is not None:
            return cache is not self.cache
        if ids is None or self.prompt_ids is None:
            return False
        prompt = self.prompt_ids.to(ids.device)
        copies, rest = divmod(len(ids), len(prompt))
        return bool(rest) or not torch.equal(ids[:, : prompt.shape[1]], prompt.repeat_interleave(copies, 0))

    def open_step(self, step: Step, arguments: OuterArguments) -> None:
        """A decoder forward begins; prefills are marked, decode steps only counted."""
        if step.context is not None:
            self.saw_image = True
            self.contexts.append(step.context)
            if not step.context.grouped:
                self.skip(
                    "grouping by image",
                    "the encoder's record did not match the prompt: contiguous runs stand in for images",
                )
        prefill = self.first_token is None
        self.prompt_done = step.past + step.q >= (self.prompt_length or 0)
        self.open_mark = self.clock.now() if prefill else None
        self.decode_steps += not prefill
        mask = arguments.attention_mask2d
        if prefill and mask is not None:
            self.prompt_tokens = mask[:, : self.prompt_length].sum(1)

    def close_step(self, step: Step, cache: Any) -> None:
        """A decoder forward ended; `cache` may have been made by it."""
        self.cache = cache
        if self.open_mark is None:
            return
        self.prefill.append((self.open_mark, self.clock.now()))
        self.query_lengths.append((step.batch, step.q))
        reach = step.past + step.q
        beyond = reach - min(self.prompt_length or reach, reach)  # candidates of assisted decoding
        self.key_lengths = [
            compat.physical_past(cache, i, beyond) or max(step.key_length.get(i, 0) - beyond, 0)
            for i in range(len(self.session.stage_of))
        ]
        self.cache_bytes = compat.cache_bytes(cache)

    def close_prompt(self) -> None:
        """The first logits exist: what later passes write, e.g. the prompt again without a cache, is set aside."""
        self.first_token = self.clock.now()
        self.prompt = {name: getattr(self, name) for name in OF_PROMPT}
        self.turn_page()

    def turn_page(self) -> None:
        vars(self).update({name: type(getattr(self, name))() for name in OF_PROMPT})

    def finish(self) -> None:
        """The call is over: only what the report needs stays."""
        self.end = self.clock.now()
        vars(self).update(self.prompt)
        self.features.clear()
        if self.marks is not None:
            tables = self.marks.tables.items()
            self.sinks = {layer: table for (name, layer), table in tables if name == "sink" and layer is not None}
        self.marks = self.cache = None

    def skip(self, what: str, why: str) -> None:
        self.skipped.setdefault(what, why)
