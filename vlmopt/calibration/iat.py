"""Measure attention to the model's own text just before it names an object, real or invented, for AdaIAT.

AdaIAT: Adaptively Increasing Attention to Generated Text to Alleviate Hallucinations in LVLM (arXiv 2603.04908). The
model describes images whose objects are known; CHAIR's matching says which words are objects and which are there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlmopt.attention_fix import IATProfile, RowCorrection, RowView
from vlmopt.attention_fix.base import no_rows

from ..api import optimized
from ..checks import model_facts
from ..metrics.lexicon import Lexicon
from ..policy import Policy
from ..prompt import placed_for
from ..runtime.structure import structure_of
from .captions import first_token, mentions
from .iat_sums import IATSums
from .sinks import readable_layers
from .trends import MISSING


@dataclass(frozen=True, kw_only=True)
class TextListener(RowCorrection):
    """Record the mean weight of a generated key in every layer, fp32 [B, H] for each pass, and edit nothing."""

    name = "calibration of generated text"
    rows: ClassVar[str] = "last"

    layers: str = "0:"
    heard: dict[int, list[Tensor]] = field(default_factory=dict, hash=False)

    @property
    def is_identity(self) -> bool:
        return False

    def edit(self, values: Tensor, view: RowView) -> tuple[Tensor, Tensor]:
        keys = view.sees(view.generated)[:, :, -1]  # [B, 1 or H, K] of the last row
        mean = (values[:, :, -1] * keys).sum(-1) / keys.sum(-1).clamp(min=1)
        self.heard.setdefault(view.layer, []).append(mean)
        return values, no_rows(values)


class IATCollector:
    """Add up what precedes words for objects in greedy captions; `state()` can be written to a file to go on later.

    A word counts by the row that predicts its first token. The first token of a caption never counts: nothing was
    generated before it.

    Args:
        model: a loaded vision-language model. tokenizer: its `decode` turns generated ids into the caption.
        lexicon: how captions spell objects. state: of an earlier collector. new_tokens: of a caption at most.

    Raises:
        ValueError: attention of no layer can be read.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        lexicon: Lexicon,
        state: Mapping[str, Any] | None = None,
        new_tokens: int = 512,
    ) -> None:
        self.model, self.tokenizer, self.lexicon, self.new_tokens = model, tokenizer, lexicon, new_tokens
        self.layers, self.facts = readable_layers(model), model_facts(model, structure_of(model))
        self.sums = IATSums(self.facts["layers"], self.facts["num_heads"], state)

    @property
    def done(self) -> int:
        """Captions so far."""
        return self.sums.captions

    @torch.inference_mode()
    def add(self, inputs: Mapping[str, Any], truths: Sequence[Collection[str]]) -> list[str]:
        """Describe a batch of prompts with images, padded on the left; return the captions.

        Args:
            truths: per prompt, canonical names of what is there.

        Raises:
            ValueError: the prompts hold no visual tokens.
        """
        listener = TextListener()
        moved = placed_for(self.model, inputs)
        end = self.tokenizer.eos_token_id
        pad = end if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        with optimized(self.model, Policy(attention=[listener])):
            out = self.model.generate(
                **moved, do_sample=False, num_beams=1, max_new_tokens=self.new_tokens, pad_token_id=pad
            )
        new = out[:, moved["input_ids"].shape[1] :].tolist()
        captions = [self.text(ids) for ids in new]
        before = self.before(listener.heard, len(new), len(new[0]) - 1)
        for sample, (ids, caption, truth) in enumerate(zip(new, captions, truths, strict=True)):
            for place, name in mentions(caption, self.lexicon):
                if token := first_token(ids, caption, place, self.text):
                    self.sums.take(before[token - 1, :, sample], token, name in truth)
        self.sums.captions += len(new)
        return captions

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def before(self, heard: Mapping[int, list[Tensor]], batch: int, steps: int) -> Tensor:
        """Return fp64 [steps, layers, B, H]: what preceded each new token but the first; 0 for unreadable layers."""
        if not heard:
            raise ValueError(MISSING)
        table = torch.zeros(steps, self.facts["layers"], batch, self.facts["num_heads"], dtype=torch.float64)
        for layer, passes in heard.items():
            if steps:
                table[:, layer] = torch.stack(passes[-steps:]).double().cpu()  # behind those of the prompt
        return table

    def state(self) -> dict[str, Any]:
        """Return the state, JSON-ready."""
        return self.sums.state()

    def profile(self, name: str) -> IATProfile:
        """Return what was measured.

        Args:
            name: what the model is called in the profile.

        Raises:
            ValueError: too few words of either kind.
        """
        return self.sums.profile(self.facts | {"name_or_path": name}, self.layers, self.lexicon.source)
