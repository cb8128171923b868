"""Change the logits of every step by an ordinary logits processor: contrasts, early layers, controls."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vlmopt.attention_fix.guidance import Guided

from ...decoding import Contrast, Decoding, EarlyExit, SeesPixels, TextContrast
from ...policy import Policy
from .. import cache_kinds
from ..arguments import Request
from ..call import CALL, Call, Generation, Session
from ..component import Account, Component
from ..structure import ModelStructure
from .marks import FOREIGN, Marks


@dataclass(eq=False)
class Told:
    """State of a call: what runs beside it says of the newest token, and what that cost."""

    second: Tensor | None = None  # fp32 [B, V], logits of the second stream
    early: Tensor | None = None  # fp32 [B, E, V], of early layers
    passes: int = 0  # of the decoder, in the second stream
    rows: int = 0  # that entered its first layer in them, padding among them
    unusable: Tensor | None = None  # Bool: somewhere the second stream was not finite
    cache: Any = None  # of the second stream, until the call ends
    cache_bytes: int = 0

    def ran(self, rows: int, logits: Tensor | None, cache: Any) -> None:
        """Book one pass of the second stream over so many rows."""
        self.second, self.passes, self.rows, self.cache = logits, self.passes + 1, self.rows + rows, cache


@dataclass(frozen=True)
class Named:
    """A step of decoding, and the method of the policy that asks for it."""

    name: str
    step: Decoding


class Decide(LogitsProcessor):
    """Work on the logits of every step, greedy or sampled; samples without an image stay as they are."""

    def __init__(self, steps: Sequence[Named]) -> None:
        self.steps = steps

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        call = CALL.get()
        if call is None:
            return scores
        marks, told = call.find(Marks), call.slot(Told)
        if marks is None:
            for named in self.steps:
                call.skip(named.name, FOREIGN)
        if marks is None or not marks.has_image:
            return scores
        out = scores.float()
        for named in self.steps:
            step = named.step
            beside = told.second if isinstance(step, Contrast) else told.early if isinstance(step, EarlyExit) else None
            beside = None if beside is None else beside.to(out.device)
            if beside is None and isinstance(step, Contrast | EarlyExit):
                continue  # whoever could not run it has said why
            if beside is not None and isinstance(step, Contrast):
                lost = (~beside.isfinite() & (out > -torch.inf)).any()
                told.unusable = lost if told.unusable is None else told.unusable | lost
            out = step.step(out, beside)
        return torch.where(marks.seen.to(scores.device)[:, None], out.to(scores.dtype), scores)


class Deciding(Component):
    """Put the processor behind those of a `generate` call."""

    def __init__(self, session: Session, steps: Sequence[Named]) -> None:
        super().__init__(session)
        self.steps = steps

    @staticmethod
    def check(model: Any, structure: ModelStructure, policy: Policy) -> None:
        for step in policy.steps:
            if isinstance(step, SeesPixels) and step.lacks is not None:
                raise ValueError(f"{step.label} needs {step.lacks}")
            step.check_vocabulary(structure.config.vocab_size)

    @classmethod
    def of(cls, session: Session) -> Deciding | None:
        steps = steps_of(session.policy)
        return cls(session, steps) if steps else None

    def open_call(self, request: Request, arguments: dict[str, Any]) -> None:
        """Add the processor.

        Raises:
            ValueError: beams or assisted decoding, whose second stream would have to be reordered or rolled back.
        """
        if request.branches:
            names = ", ".join(named.name for named in self.steps)
            raise ValueError(
                f"{names}: it needs one sequence per sample and step, and {request.branches} tries several; use "
                "num_beams=1 without assisted decoding, or leave it out (of a correction: gamma=1)"
            )
        given = arguments.get("logits_processor") or []
        arguments["logits_processor"] = LogitsProcessorList([*given, Decide(self.steps)])

    def close_call(self, call: Call) -> None:
        """Keep counts only, and warn of a second stream that could not be used."""
        told = call.find(Told)
        if told is None:
            return
        if told.unusable is not None and bool(told.unusable):
            why = "logits of the second stream were not finite; the model's own stand where they were not"
            call.skip("the contrast of some samples", why)
            warnings.warn(why, stacklevel=2)
        if told.cache is not None:
            told.cache_bytes = cache_kinds.cache_bytes(told.cache)
        told.second = told.early = told.unusable = told.cache = None

    def report(self, call: Call) -> Account:
        """Report every step, and what its second stream cost; a bare forward has no logits processors."""
        if not isinstance(call, Generation):
            why = "only `generate` hands logits to processors; those of a forward are the model's own"
            return Account(skipped={self.title(named): why for named in self.steps})
        told, entries, lines = call.slot(Told), [], []
        for named in self.steps:
            entry: dict[str, Any] = {"method": named.name, "reads": named.step.reads}
            entry |= {"passes": 0, "rows": 0, "cache_bytes": 0}
            text = f"applied  {self.title(named)}"
            if isinstance(named.step, Contrast):
                entry |= {"passes": told.passes, "rows": told.rows, "cache_bytes": told.cache_bytes}
                text += (
                    f": a second stream ({named.step.reads}), {told.passes} more passes over {told.rows} rows, "
                    f"{told.cache_bytes / 2**20:.2f} MiB of keys and values of its own"
                )
            entries.append(entry)
            lines.append(text)
        return Account({"decoding": entries}, lines)

    def title(self, named: Named) -> str:
        return named.name if named.step in self.session.policy.decoding else f"guidance of {named.name}"


def steps_of(policy: Policy) -> list[Named]:
    """Return the steps of decoding: guidance of corrections, which is `text_contrast`, then the policy's own."""
    found = [
        Named(c.name, TextContrast(alpha=c.gamma - 1, cutoff=c.cutoff))
        for c in policy.corrections
        if isinstance(c, Guided) and c.gamma != 1
    ]
    return [*found, *(Named(step.name, step) for step in policy.steps)]


def contrast_of(session: Session) -> Contrast | None:
    """Return the one contrast of a policy, None if there is none."""
    return next((named.step for named in steps_of(session.policy) if isinstance(named.step, Contrast)), None)
