"""Guidance away from what the language model says without the pictures, as an ordinary logits processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vlmopt.attention_fix import guide

from .call import CALL, Session
from .marks import Marks


class Guidance(LogitsProcessor):
    """Works on the logits of every step, greedy or sampled; samples without a picture stay as they are."""

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


def branching(session: Session, kwargs: dict[str, Any]) -> str | None:
    """What makes a `generate` call try texts that it may not keep; None if nothing does."""
    config = kwargs.get("generation_config") or getattr(session.model, "generation_config", None)

    def setting(name: str) -> Any:
        return kwargs.get(name, getattr(config, name, None))

    if (setting("num_beams") or 1) > 1:
        return "beams"
    assisted = kwargs.get("assistant_model") is not None or setting("prompt_lookup_num_tokens") is not None
    return "assisted decoding" if assisted else None


def guided(method: Any, kwargs: dict[str, Any], branches: str | None) -> LogitsProcessorList:
    """The processors of a `generate` call with guidance behind them; `branches` is from `branching`.

    Raises:
        ValueError: beams or assisted decoding, whose second stream would have to be reordered or rolled back.
    """
    if branches:
        raise ValueError(
            f"{method.name}: gamma > 1 needs one sequence per sample and step; use num_beams=1 without assisted "
            "decoding, or gamma=1"
        )
    return LogitsProcessorList([*(kwargs.get("logits_processor") or []), Guidance(method)])
