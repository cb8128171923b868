"""The three objects that hooks are handed, from long-lived to short-lived: a session, a call, a step.

They hold facts. What a feature remembers beside them lies in slots whose classes stand in the feature's own file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..families import Family
from ..offload import device_of
from ..policy import Policy
from . import cache_kinds
from .arguments import OuterArguments, Request, images_in, same_images
from .context import Chunk, Lease, VisualContext
from .ledger import Clock, Features, Ledger, Page
from .points import SidePass
from .slots import Slots
from .stages import Stages
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

    policy: Policy
    structure: ModelStructure
    stages: Stages
    family: Family
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

    @property
    def model(self) -> Any:
        """The model with the head; below wrappers such as PEFT's, which come and go."""
        return self.structure.head

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

    def open_ledger(self) -> Ledger:
        """Open the ledger of a call that is to have a report; from now on there is none of the call before."""
        self.last.call, self.last.began = None, True
        return Ledger(Clock(torch.cuda.is_available() and device_of(self.model).type == "cuda"))


@dataclass(eq=False)
class Progress:
    """How far the sequence of a call has come."""

    arguments: OuterArguments | None = None  # on the way from the outer model to its decoder
    began: int | None = None  # length of the cache before the first chunk
    mask: Tensor | None = None  # Bool[B, L] of the prompt, which `generate` makes where it is given none
    cache: Any = None  # while the call runs
    images: Sequence[Tensor] | None = None  # as its first pass brought them, while the call runs
    saw_image: bool = False  # in any of its passes, also in one that began anew since
    prompt_done: bool = False


@dataclass(frozen=True, eq=False)
class Call(Slots):
    """What a model is asked: a `Generation`, a bare `Forward`, or a forward `Beside` a generation.

    Held in a context variable while it runs; the session keeps the last that is to have a report.
    """

    session: Session
    ledger: Ledger
    request: Request = field(default_factory=Request)
    progress: Progress = field(default_factory=Progress)
    features: Features = field(default_factory=Features)

    @property
    def page(self) -> Page:
        """What the passes of now are written down on."""
        return self.ledger.page

    @property
    def prompt_mask(self) -> Tensor | None:
        """Bool[B, L]: what is real in the prompt, as `generate` was told or told itself by ids of padding."""
        return self.progress.mask if self.request.mask is None else self.request.mask

    @property
    def once(self) -> slice:
        """Rows of the batch that a report counts: the first of the copies that beams and the like make of a prompt."""
        rows = self.page.query_lengths[0][0] if self.page.query_lengths else 0
        copies, rest = divmod(rows, self.request.prompts or max(rows, 1))
        return slice(0, rows, 1 if rest else max(copies, 1))

    def skip(self, what: str, why: str) -> None:
        """Note once that something does not happen, and why."""
        self.ledger.skipped.setdefault(what, why)

    def aside(self, cache: Any, ids: Tensor | None, given: Mapping[str, Any] | None = None) -> bool:
        """Return whether a pass is of another sequence than the one asked for.

        One example is the unconditional sequence of a guidance scale. Sequences are told apart by their cache, without
        one by how they begin and by the images among what the outer model was `given`.
        """
        progress = self.progress
        if progress.began is None:
            return False
        if cache is not None or progress.cache is not None:
            return cache is not progress.cache
        if ids is None or self.request.ids is None:
            return False
        prompt = self.request.ids.to(ids.device)
        copies, rest = divmod(len(ids), len(prompt))
        if rest or not torch.equal(ids[:, : prompt.shape[1]], prompt.repeat_interleave(copies, 0)):
            return True
        return given is not None and not same_images(progress.images or (), images_in(given))

    def beside(self) -> Beside:
        """Return the call of a pass of another sequence."""
        return Beside(self.session, Ledger(self.ledger.clock))

    def open_step(self, step: Step) -> None:
        """Begin a decoder forward; those of a prompt are timed, those behind it only counted."""
        if isinstance(step, PromptStep) and step.context is not None:
            self.progress.saw_image = True
            self.page.contexts.append(step.context)
            if not step.context.grouped:
                cut = step.context.parts
                why = "the prompt came in chunks" if cut else "the encoder's record did not match the prompt"
                self.skip("grouping by image", f"{why}: contiguous runs stand in for images")
        self.progress.prompt_done = step.past + step.q >= (self.request.length or 0)
        mask, reading = step.arguments.attention_mask2d, self.ledger.open_pass()
        if reading and mask is not None:
            self.page.prompt_tokens = mask[:, : self.request.length].sum(1)
        if self.ledger.decode_steps == 1:  # candidates of assisted decoding come along with the prompt
            self.ledger.first_tokens = 1 + max(step.past - (self.request.length or step.past), 0)

    def close_step(self, step: Step, cache: Any) -> None:
        """End a decoder forward; `cache` may have been made by it."""
        self.progress.cache = cache
        if not self.ledger.close_pass():
            return
        page, reach = self.page, step.past + step.q
        page.query_lengths.append((step.batch, step.q))
        beyond = reach - min(self.request.length or reach, reach)  # candidates of assisted decoding
        whole = reach if cache is None else 0  # of an attention layer that no cut concerns
        page.key_lengths = [
            cache_kinds.physical_past(cache, i, beyond)
            or max(step.key_length.get(i, 0 if attention is None else whole) - beyond, 0)
            for i, attention in enumerate(self.session.structure.attentions)
        ]
        page.cache_bytes = cache_kinds.cache_bytes(cache)

    def finish(self) -> None:
        """End the call: only what the report needs stays."""
        self.ledger.close()
        self.features.clear()
        self.progress.cache = self.progress.images = self.progress.mask = None
        self.session.last.call = self


class Generation(Call):
    """One `generate`."""


class Forward(Call):
    """One bare forward."""


class Beside(Call):
    """One forward of another sequence inside a `generate`; it has no report."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Step(Chunk):
    """One forward of the decoder. Held in a context variable, never on a module or class."""

    call: Call
    positions: Tensor  # Long[B or 1, L] or [3, B, L], as the decoder was given them
    given: dict[str, Any]  # its other arguments by name
    arguments: OuterArguments  # those of the outer model


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptStep(Step):
    """A prompt or a chunk of it."""

    context: VisualContext | None  # None: it shows no images
    fixed: str | None = None  # why nothing may leave its cache
    again: bool = False  # a checkpointed layer runs once more, in the backward pass

    @property
    def ends_prompt(self) -> bool:
        """Whether it holds the last row of the prompt."""
        end = self.call.request.length
        return end is None or self.past + self.q >= end

    @property
    def once_more(self) -> bool:
        """Whether, for lack of a cache, this pass of `generate` is the prompt again, with what came of it so far."""
        return self.call.ledger.prompt is not None and not self.again


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodeStep(Step):
    """Rows behind the prompt: a generated one, or candidates of assisted decoding."""

    fast: bool  # layers need nothing that was not in place for the step before


STEP: ContextVar[Step | SidePass | None] = ContextVar("vlmopt_step", default=None)
CALL: ContextVar[Call | None] = ContextVar("vlmopt_call", default=None)
