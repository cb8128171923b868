"""Guidance away from what the language model says without the pictures, as an ordinary logits processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vlmopt.attention_fix import guide

from .context import CALL

if TYPE_CHECKING:
    from .session import Session


class Guidance(LogitsProcessor):
    """Works on the logits of every step, greedy or sampled; samples without a picture stay as they are."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        call, corrections = CALL.get(), self.session.corrections
        if call is None or call.marks is None or call.marks.stream is None or corrections is None:
            return scores
        without = call.marks.stream.logits
        if without is None or corrections.guided is None:
            return scores
        method = corrections.guided
        out = guide(scores, without.to(scores.device), method.gamma, method.cutoff).to(scores.dtype)
        return torch.where(call.marks.seen.to(scores.device)[:, None], out, scores)


def branching(session: Session, kwargs: dict[str, Any]) -> str | None:
    """What makes a `generate` call try texts that it may not keep; None if nothing does."""
    config = kwargs.get("generation_config") or getattr(session.model, "generation_config", None)

    def setting(name: str) -> Any:
        return kwargs.get(name, getattr(config, name, None))

    if (setting("num_beams") or 1) > 1:
        return "beams"
    assisted = kwargs.get("assistant_model") is not None or setting("prompt_lookup_num_tokens") is not None
    return "assisted decoding" if assisted else None


def guided(session: Session, kwargs: dict[str, Any], branches: str | None) -> LogitsProcessorList:
    """The processors of a `generate` call with guidance behind them; `branches` is from `branching`.

    Raises:
        ValueError: beams or assisted decoding, whose second stream would have to be reordered or rolled back.
    """
    if branches:
        name = session.corrections.guided.name if session.corrections else "guidance"
        raise ValueError(
            f"{name}: gamma > 1 needs one sequence per sample and step; use num_beams=1 without assisted decoding, or "
            "gamma=1"
        )
    return LogitsProcessorList([*(kwargs.get("logits_processor") or []), Guidance(session)])
