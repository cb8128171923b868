"""Call `generate` once on a prepared batch, and keep what came out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..api import report
from ..loading import Loaded
from ..offload import device_of
from ..prompt import placed
from ..reporting import Report
from .prompts import Batch

# Settings of a model's own generation config that change greedy answers, too.
IN_FORCE = (
    "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size", "min_length", "min_new_tokens",
    "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id", "eos_token_id",
)  # fmt: skip


@dataclass(frozen=True)
class Output:
    """Texts, new tokens (the end mark included) and whether it came to its end, per sample; and the ledger."""

    texts: list[str]
    lengths: list[int]
    ended: list[bool]
    report: Report


@torch.inference_mode()
def generate(loaded: Loaded, batch: Batch, new_tokens: int) -> Output:
    """Generate greedy answers with an optimized model."""
    model, tokenizer = loaded.model, loaded.processor.tokenizer
    inputs = placed(batch.inputs, input_device(model), next(model.parameters()).dtype)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    out = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=new_tokens, pad_token_id=pad)
    new = out[:, inputs["input_ids"].shape[1] :].cpu()
    lengths = ended_after(new, end_tokens(model))
    return Output(
        texts=[text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)],
        lengths=[new.shape[1] if length is None else length for length in lengths],
        ended=[length is not None for length in lengths],
        report=report(model),
    )


def decoding(model: Any) -> dict[str, Any]:
    """Return how answers are chosen, for the summary; a model's own settings beside greedy choice stay in force."""
    own = model.generation_config.to_diff_dict()
    return {"do_sample": False, "num_beams": 1, **{name: own[name] for name in IN_FORCE if own.get(name) is not None}}


def input_device(model: Any) -> torch.device:
    """Return the device for inputs: of a model that was spread out, the first device that computes."""
    places = [place for place in device_map(model).values() if place not in ("cpu", "disk")]
    device = torch.device(places[0]) if places else device_of(model)
    return torch.device("cpu") if device.type == "meta" else device


def device_map(model: Any) -> dict[str, Any]:
    """Return module -> device for a model that was loaded with a map; else an empty dict."""
    return dict(getattr(model, "hf_device_map", None) or {})


def end_tokens(model: Any) -> list[int]:
    end = model.generation_config.eos_token_id
    return [] if end is None else list(end) if isinstance(end, (list, tuple)) else [int(end)]


def ended_after(new: torch.Tensor, ends: Sequence[int]) -> list[int | None]:
    """Return the number of tokens of each row of [b, new] up to and with its end mark; None where there is none."""
    marks = torch.isin(new, torch.tensor(list(ends), dtype=new.dtype))
    return [int(row.nonzero()[0]) + 1 if row.any() else None for row in marks]
