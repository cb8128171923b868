"""Translate a task's wishes into arguments of `generate`, and weigh given answers by walking along them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

NEW_TOKENS = 1024
TAKEN = ("max_new_tokens", "min_new_tokens", "num_beams", "repetition_penalty", "length_penalty")
SAMPLING = ("temperature", "top_p", "top_k")
FILLED_IN = "\n\n"  # lmms-eval's own `until` of every task that names none


def decoding(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `generate`: greedy where the temperature is 0 or missing, or `do_sample` is false."""
    sampled = wanted.get("do_sample", bool(wanted.get("temperature"))) and wanted.get("temperature") != 0
    settings = {"max_new_tokens": NEW_TOKENS, **{name: wanted[name] for name in TAKEN if wanted.get(name) is not None}}
    settings["do_sample"] = bool(sampled)
    for name in SAMPLING:  # None: a model's own temperature must not speak up beside a greedy choice
        if sampled:
            settings |= {name: wanted[name]} if wanted.get(name) is not None else {}
        else:
            settings[name] = None
    return settings


def unused(wanted: Mapping[str, Any]) -> set[str]:
    """Return the names of a task's settings that mean nothing here."""
    return set(wanted) - {*TAKEN, *SAMPLING, "do_sample", "until"}


def stops(wanted: Mapping[str, Any]) -> list[str]:
    """Return the strings that end an answer.

    Raises:
        TypeError: `until` is neither a string nor a list of strings.
    """
    until = wanted.get("until") or []
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, (list, tuple)) or not all(isinstance(stop, str) for stop in until):
        raise TypeError(f"generation setting until={until!r}: expected a string or a list of strings")
    return [stop for stop in until if stop and stop != FILLED_IN]


def cut(text: str, ends: Sequence[str]) -> str:
    """Return the text before the first of the ends."""
    return text[: min((place for end in ends if (place := text.find(end)) >= 0), default=len(text))]


class Forced:
    """A logits processor under which nothing but `tokens` can be generated.

    `generate` itself then walks along a given answer: the prompt is pruned and corrected before the answer is seen, as
    when it is made freely.
    """

    def __init__(self, tokens: Tensor, prompt: int) -> None:
        self.tokens, self.prompt = tokens, prompt  # Long[b, t]; tokens of the prompt, padding included

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        wanted = self.tokens[:, input_ids.shape[1] - self.prompt].to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, wanted[:, None], 0.0)


def weighed(logits: Sequence[Tensor], tokens: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean negative log-likelihood per token, fp32 [b], and whether greedy choice gives the same tokens.

    `logits` holds [b, vocabulary] per step, before the forcing; `tokens` and `valid` are [b, t]. The second is Bool[b].
    """
    stacked = torch.stack(list(logits), dim=1).float()  # [b, t, vocabulary]
    tokens, valid = tokens.to(stacked.device), valid.to(stacked.device)
    losses = -stacked.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    agrees = (stacked.argmax(-1) == tokens) | ~valid
    return losses.masked_fill(~valid, 0.0).sum(1) / valid.sum(1), agrees.all(1)
