"""The three objects that hooks are handed, from long-lived to short-lived: a session, a call, a step.

They hold facts. What a feature remembers beside them lies in slots whose classes stand in the feature's own file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vlmopt.pruning import Selector

from ..families import Family
from ..policy import Policy
from ..scorers import TrainedScorer
from . import compat
from .arguments import OuterArguments, Request, images_in, same_images
from .context import Chunk, Lease, VisualContext
from .ledger import Clock, Features, Page
from .offload import device_of
from .points import SidePass
from .slots import Slots
from .structure import ModelStructure


@dataclass(eq=False)
class Last:
    """The last call of a session; copies and pickles of a model have not run yet."""

    call: Call | None = None  # None also while one runs, and when it did not finish
    began: bool = False

    def __reduce__(self) -> tuple[type[Last], tuple[()]]:
        return Last, ()


@dataclass(frozen=True, eq=False)
class Session(Slots):
    """One optimized model: the facts that its hooks share. Hooks are objects, not closures, so that they copy."""

    model: Any  # with the head; below wrappers such as PEFT's, which come and go
    policy: Policy
    structure: ModelStructure
    family: Family
    trained: Mapping[str, TrainedScorer]  # by source
    serial: str  # copies of the session share it
    lease: Lease = field(default_factory=Lease)
    undo: list[Callable[[], None]] = field(default_factory=list)
    last: Last = field(default_factory=Last)

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        """Give a copied model a session of its own; a copied part (PEFT's `modules_to_save`) stays with this one."""
        if id(self.model) not in memo:
            return self
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    @cached_property
    def selectors(self) -> tuple[Selector, ...]:
        """The selectors in order; the k-th cut starts stage k + 1."""
        return tuple(self.policy.active)

    @cached_property
    def stage_of(self) -> list[int]:
        """The stage of every decoder layer."""
        return [sum(method.layer <= i for method in self.selectors) for i in range(len(self.structure.layers))]

    def hook(self, handle: Any) -> None:
        """Register a hook of torch's for removal with everything else."""
        self.undo.append(handle.remove)

    def running_call(self) -> Call | None:
        """Return the call of this session that runs now in this context, None outside one."""
        call = CALL.get()
        return call if call is not None and call.session is self else None

    def running_step(self) -> Step | None:
        """Return the step of this session that runs now in this context, None outside one."""
        step = STEP.get()
        return step if isinstance(step, Step) and step.call.session is self else None

    def new_call(self, request: Request | None = None) -> Call:
        """Begin a `generate`, or a bare forward where nothing was requested."""
        clock = Clock(torch.cuda.is_available() and device_of(self.model).type == "cuda")
        self.last.call, self.last.began = None, True
        return Call(self, clock, request is not None, request or Request(), clock.now())


@dataclass(eq=False)
class Call(Slots):
    """One `generate`, or one bare forward. Held in a context variable while it runs; the session keeps the last."""

    session: Session
    clock: Clock
    by_generate: bool
    request: Request = field(default_factory=Request)
    start: Any = None
    began: int | None = None  # length of the cache before the first chunk
    cache: Any = None  # of the sequence asked for, while the call runs
    arguments: OuterArguments | None = None  # on the way from the outer model to its decoder
    images: Sequence[Tensor] | None = None  # as its first pass brought them, while the call runs
    features: Features = field(default_factory=Features)
    page: Page = field(default_factory=Page)
    prompt: Page | None = None  # the page of the prompt, from the first logits on
    skipped: dict[str, str] = field(default_factory=dict)  # what -> why, once each
    saw_image: bool = False  # in any of its passes, also in one that began anew since
    prompt_done: bool = False
    open_mark: Any = None
    first_token: Any = None
    end: Any = None
    decode_steps: int = 0
    new_tokens: int = 0
    beside: bool = False  # one forward inside a `generate`, of another sequence; it has no report

    def aside(self, cache: Any, ids: Tensor | None, given: Mapping[str, Any] | None = None) -> bool:
        """Return whether a pass is of another sequence than the one asked for.

        One example is the unconditional sequence of a guidance scale. Sequences are told apart by their cache, without
        one by how they begin and by the images among what the outer model was `given`.
        """
        if self.began is None:
            return False
        if cache is not None or self.cache is not None:
            return cache is not self.cache
        if ids is None or self.request.ids is None:
            return False
        prompt = self.request.ids.to(ids.device)
        copies, rest = divmod(len(ids), len(prompt))
        if rest or not torch.equal(ids[:, : prompt.shape[1]], prompt.repeat_interleave(copies, 0)):
            return True
        return given is not None and not same_images(self.images or (), images_in(given))

    def open_step(self, step: Step) -> None:
        """Begin a decoder forward; prefills are marked, decode steps only counted."""
        if isinstance(step, PromptStep) and step.context is not None:
            self.saw_image = True
            self.page.contexts.append(step.context)
            if not step.context.grouped:
                why = "the encoder's record did not match the prompt: contiguous runs stand in for images"
                self.skip("grouping by image", why)
        prefill = self.first_token is None
        self.prompt_done = step.past + step.q >= (self.request.length or 0)
        self.open_mark = self.clock.now() if prefill else None
        self.decode_steps += not prefill
        mask = step.arguments.attention_mask2d
        if prefill and mask is not None:
            self.page.prompt_tokens = mask[:, : self.request.length].sum(1)

    def close_step(self, step: Step, cache: Any) -> None:
        """End a decoder forward; `cache` may have been made by it."""
        self.cache = cache
        if self.open_mark is None:
            return
        page, reach = self.page, step.past + step.q
        page.prefill.append((self.open_mark, self.clock.now()))
        page.query_lengths.append((step.batch, step.q))
        beyond = reach - min(self.request.length or reach, reach)  # candidates of assisted decoding
        page.key_lengths = [
            compat.physical_past(cache, i, beyond) or max(step.key_length.get(i, 0) - beyond, 0)
            for i in range(len(self.session.stage_of))
        ]
        page.cache_bytes = compat.cache_bytes(cache)

    def close_prompt(self) -> None:
        """Mark that the first logits exist.

        What later passes write, e.g. the prompt again without a cache, is set aside.
        """
        self.first_token = self.clock.now()
        self.prompt, self.page = self.page, Page()

    def finish(self) -> None:
        """End the call: only what the report needs stays."""
        self.end = self.clock.now()
        self.page = self.prompt or self.page
        self.features.clear()
        self.cache = self.images = None
        self.session.last.call = self

    def skip(self, what: str, why: str) -> None:
        self.skipped.setdefault(what, why)


@dataclass(frozen=True, eq=False, kw_only=True)
class Step(Chunk, Slots):
    """One forward of the decoder. Held in a context variable, never on a module or class."""

    call: Call
    positions: Tensor  # Long[B or 1, L] or [3, B, L], as the decoder was given them
    embeds: Tensor  # [B, L, d] what the decoder was given
    given: dict[str, Any]  # its other arguments by name
    arguments: OuterArguments  # those of the outer model


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptStep(Step):
    """A prompt or a chunk of it."""

    context: VisualContext | None  # None: it shows no images
    fixed: str | None = None  # why its cache cannot shrink
    again: bool = False  # a checkpointed layer runs once more, in the backward pass

    @property
    def ends_prompt(self) -> bool:
        """Whether it holds the last row of the prompt."""
        end = self.call.request.length
        return end is None or self.past + self.q >= end

    @property
    def once_more(self) -> bool:
        """Whether, for lack of a cache, this pass of `generate` is the prompt again, with what came of it so far."""
        return self.call.prompt is not None and not self.again


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodeStep(Step):
    """Rows behind the prompt: a generated one, or candidates of assisted decoding."""

    fast: bool  # layers need nothing that was not in place for the step before


STEP: ContextVar[Step | SidePass | None] = ContextVar("vlmopt_step", default=None)
CALL: ContextVar[Call | None] = ContextVar("vlmopt_call", default=None)
