"""Listen to the attention that a prompt's last row and every generated row pay to the image, in one `generate` call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vlmopt.attention_fix import RowCorrection, RowView, SinkDiagnosis
from vlmopt.attention_fix.base import no_rows

from ..api import optimized, report
from ..policy import Policy
from ..prompt import chat, placed_for
from ..reporting import Report, VisualMap


@dataclass(frozen=True, kw_only=True)
class RowListener(RowCorrection):
    """Change nothing; note the mean over heads of the attention that rows which predict pay to visual tokens.

    `seen` holds per layer one fp32 [B, n] for every such row, at most `steps` of them.
    """

    name = "attention to the image"
    rows = "last"

    steps: int = 1
    seen: dict[int, list[Tensor]] = field(default_factory=dict, hash=False)

    @property
    def is_identity(self) -> bool:
        return False  # it would not be installed

    def edit(self, values: Tensor, view: RowView) -> tuple[Tensor, Tensor]:
        heard = self.seen.setdefault(view.layer, [])
        if len(heard) < self.steps and bool(view.rows.any()):
            # Without a cache the prompt comes again with what was generated: the last row is the one that predicts.
            last = view.rows.shape[1] - 1 - view.rows.flip(1).long().argmax(1)
            mean = values[torch.arange(len(last), device=last.device), :, last].mean(1)
            own = [weights[image].float() for weights, image in zip(mean, view.image, strict=True)]
            n = heard[0].shape[1] if heard else max(map(len, own))
            # A sliding layer forgets the oldest keys: what it no longer sees has no attention.
            heard.append(torch.stack([torch.nn.functional.pad(w, (n - len(w), 0)) for w in own]).cpu())
        return values, no_rows(values)


@dataclass(frozen=True, eq=False)
class Heard:
    """What one prompt about one image looked at."""

    attention: Tensor  # fp32 [T, L, n] of T answer tokens in L layers
    sinks: Tensor  # Bool[n] visual tokens that `sink_diagnosis` names; all False where it was not asked
    answer: str
    tokens: int  # of the answer, its end mark included
    prompt_tokens: int
    maps: tuple[VisualMap, ...]

    @property
    def visual_tokens(self) -> int:
        """The number n."""
        return self.attention.shape[2]


@dataclass(frozen=True)
class Ends:
    """End every sample after its own number of new tokens; a stopping criterion of `generate`."""

    prompt: int
    limits: tuple[int, ...]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(self.limits, device=input_ids.device) <= input_ids.shape[1] - self.prompt


@torch.inference_mode()
def hear(
    model: nn.Module,
    processor: Any,
    image: Image.Image,
    prompts: Sequence[tuple[str, int]],
    *,
    layers: str,
    steps: int,
    sinks: bool,
) -> list[Heard]:
    """Ask several questions about one image in one batch, greedily and unpruned, and listen.

    Args:
        model: given back as it came. prompts: (question, tokens that its answer has at most).
        layers: whose attention counts, as corrections write them. steps: answer tokens that are listened to, at most.
        sinks: whether to look for attention sinks as well.

    Raises:
        ValueError: layers that the model does not have, or whose attention cannot be read.
    """
    text = [chat(processor, "image", 1, question) for question, _ in prompts]
    inputs: Any = processor(
        text=text, images=[[image] for _ in text], return_tensors="pt", padding=True, padding_side="left"
    )
    inputs = placed_for(model, inputs)
    listener = RowListener(layers=layers, steps=steps)
    start = inputs["input_ids"].shape[1]
    with optimized(model, Policy(attention=[listener, *([SinkDiagnosis()] if sinks else [])])):
        ids = generated(model, processor, inputs, [most for _, most in prompts])
        found = report(model)
    rows = torch.stack([torch.stack(listener.seen[layer], 1) for layer in sorted(listener.seen)], 2)  # [B, T, L, n]
    out = []
    for sample, ((_, most), new) in enumerate(zip(prompts, ids[:, start:].cpu(), strict=True)):
        count = min(length_of(new, model), most)
        maps = tuple(found.maps(sample))
        if sum(len(m.kept) for m in maps) != rows.shape[3]:
            raise RuntimeError(f"attention to {rows.shape[3]} tokens was heard, the report maps other ones")
        out.append(
            Heard(
                attention=rows[sample, : min(count, rows.shape[1])],
                sinks=sinks_among(maps, found, sample),
                answer=str(processor.tokenizer.decode(new[:count], skip_special_tokens=True)).strip(),
                tokens=count,
                prompt_tokens=int(found.samples[sample]["prompt_tokens"]),
                maps=maps,
            )
        )
    return out


def generated(model: Any, processor: Any, inputs: dict[str, Any], most: Sequence[int]) -> Tensor:
    """Return ids [B, L] of greedy answers, each sample's ended after its own number of new tokens."""
    from transformers import StoppingCriteriaList

    tokenizer = processor.tokenizer
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ends = StoppingCriteriaList([Ends(inputs["input_ids"].shape[1], tuple(most))])
    ids: Tensor = model.generate(
        **inputs, do_sample=False, num_beams=1, max_new_tokens=max(most), pad_token_id=pad, stopping_criteria=ends
    )
    return ids


def length_of(new: Tensor, model: Any) -> int:
    """Return the number of new tokens up to and with the end mark."""
    ends = model.generation_config.eos_token_id
    marks = torch.isin(new, torch.tensor([] if ends is None else ends if isinstance(ends, list) else [ends]))
    return int(marks.nonzero()[0]) + 1 if bool(marks.any()) else len(new)


def sinks_among(maps: Sequence[VisualMap], found: Report, sample: int) -> Tensor:
    """Return Bool[n]: visual tokens that the report's diagnosis names as a sink of any kind."""
    heard = [entry["found"] for entry in found.corrections if entry["found"]]
    cells = {tuple(t["cell"]) for entry in heard for t in entry[sample]["tokens"] if t["cell"] is not None}
    places = [(m.item, *cell) for m in maps for cell in m.coords.tolist()]
    return torch.tensor([place in cells for place in places], dtype=torch.bool)
