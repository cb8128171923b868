"""Guide away from what the language model says without the images, by an ordinary logits processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vlmopt.attention_fix import guide

from ..arguments import Request
from ..call import CALL, Call, Generation, Session
from ..component import Account, Component
from .marks import Marks


class Guide(LogitsProcessor):
    """Work on the logits of every step, greedy or sampled; samples without an image stay as they are."""

    def __init__(self, method: Any) -> None:
        self.method = method

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        call = CALL.get()
        marks = None if call is None else call.find(Marks)
        without = None if marks is None or marks.stream is None else marks.stream.logits
        if marks is None or without is None:
            return scores
        method = self.method
        out = guide(scores, without.to(scores.device), method.gamma, method.cutoff).to(scores.dtype)
        return torch.where(marks.seen.to(scores.device)[:, None], out, scores)


class Guidance(Component):
    """Put the processor behind those of a `generate` call."""

    def __init__(self, session: Session, method: Any) -> None:
        super().__init__(session)
        self.method = method

    @classmethod
    def of(cls, session: Session) -> Guidance | None:
        method = method_of(session)
        return None if method is None else cls(session, method)

    def open_call(self, request: Request, arguments: dict[str, Any]) -> None:
        """Add the processor.

        Raises:
            ValueError: beams or assisted decoding, whose second stream would have to be reordered or rolled back.
        """
        method = self.method
        if request.branches:
            raise ValueError(
                f"{method.name}: gamma > 1 needs one sequence per sample and step; use num_beams=1 without assisted "
                "decoding, or gamma=1"
            )
        given = arguments.get("logits_processor") or []
        arguments["logits_processor"] = LogitsProcessorList([*given, Guide(method)])

    def report(self, call: Call) -> Account:
        """Say that a bare forward has no logits processors."""
        why = "only `generate` hands logits to processors; those of a forward are the model's own"
        return Account() if isinstance(call, Generation) else Account(skipped={f"guidance of {self.method.name}": why})


def method_of(session: Session) -> Any:
    """Return the correction that guides, None if none does."""
    return next((c for c in session.policy.corrections if getattr(c, "gamma", 1.0) != 1.0), None)
