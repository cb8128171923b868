"""The independent oracle of corrections: full attention matrices of the dense model, edited row by row from equations.

Nothing of the library under test is used, neither its rows nor its masks nor its state: which token is what is known
from the prompt, and images are left out by running the shortened prompt through an untouched copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.families import Batch
from tests.support.reference import Reference, decoder_of
from tests.support.tiny import END, START


@dataclass
class Row:
    """One attention row [H, K] of one sample, and what its keys are."""

    layer: int
    values: Tensor
    image: Tensor  # Bool[K]
    system: Tensor
    generated: Tensor
    sink: Tensor


Edit = Callable[[Row], Tensor]


@dataclass(frozen=True)
class Rule:
    """A correction as equations: what becomes of a row's logits or weights, or which heads are multiplied."""

    stage: str = "weights"
    rows: str = "text"
    edit: Edit | None = None
    layers: tuple[int, ...] = ()
    dims: tuple[int, ...] = ()  # sinks: |x_c| / rms >= tau
    tau: float = 0.0
    gain: Callable[[Tensor, Tensor], Tensor] | None = None  # head outputs [H, D] with and without images -> [H]


class Corrected(Reference):
    """`Reference` whose attention follows rules."""

    def __init__(self, model: nn.Module, batch: Batch, rules: list[Rule]) -> None:
        super().__init__(model)
        self.batch, self.rules = batch, rules
        self.sinks: dict[int, Tensor] = {}
        self.gains: dict[tuple[int, int], Tensor] = {}
        self.plain = copy.deepcopy(model)
        for i, layer in enumerate(self.decoder.layers):
            layer.register_forward_pre_hook(self._look(i), with_kwargs=True)
        if any(rule.gain for rule in rules):
            self.without = [text_only_heads(self.plain, batch, b) for b in range(len(batch.ids))]

    def _look(self, layer: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            for rule in self.rules:
                if rule.dims and self.past == 0:
                    rms = (hidden.float() ** 2).mean(-1).add(1e-6).sqrt()
                    phi = hidden[..., list(rule.dims)].float().abs().amax(-1) / rms
                    here = self.here(layer)
                    times = len(phi) // len(here)
                    self.sinks[layer] = ((phi >= rule.tau) & here.repeat_interleave(times, 0))[::times]

        return hook

    def here(self, layer: int) -> Tensor:
        """Bool[B, L]: prompt tokens that are real and not dropped."""
        if self.removal is None or self.removal.survivors[layer] is None:
            return self.batch.real
        return self.batch.real & self.removal.kept(layer)

    def edited(self, stage: str, layer: int, values: Tensor) -> Tensor:
        width, length = values.shape[-1], self.batch.ids.shape[1]
        times, out = values.shape[0] // self.batch.ids.shape[0], values.clone()
        for rule in self.rules:
            if rule.stage != stage or rule.edit is None or layer not in rule.layers:
                continue
            for b in range(values.shape[0]):
                sample = b // times
                visual = self.batch.visual[sample] & self.batch.real[sample]
                if not visual.any():
                    continue
                first = int(visual.nonzero()[0])

                def keys(prompt: Tensor) -> Tensor:
                    full = torch.zeros(max(width, length), dtype=torch.bool)
                    full[:length] = prompt
                    return full[:width]

                here = self.here(layer)[sample]
                sink = self.sinks[layer][sample] if layer in self.sinks else torch.zeros_like(here)
                places = torch.arange(length)
                for r in range(values.shape[2]):
                    column = self.past + self.q - values.shape[2] + r
                    if column < length:
                        real = bool(here[column])
                        is_text = real and not bool(visual[column]) and column > first
                        is_last = column == length - 1
                    else:
                        is_text = is_last = True
                    if not (is_last if rule.rows == "last" else is_text):
                        continue
                    seen = torch.arange(width) <= column
                    if stage == "weights":  # out of a sliding window
                        seen = seen & (out[b, :, r] > 0).any(0)
                    row = Row(
                        layer, out[b, :, r], keys(visual & here) & seen,
                        keys(here & ~visual & (places < first)) & seen, (torch.arange(width) >= length) & seen,
                        keys(sink & here) & seen,
                    )  # fmt: skip
                    out[b, :, r] = rule.edit(row)
        return out

    def logits(self, layer: int, scores: Tensor) -> Tensor:
        return self.edited("logits", layer, scores)

    def weights(self, layer: int, weights: Tensor) -> Tensor:
        return self.edited("weights", layer, weights)

    def heads(self, layer: int, out: Tensor) -> Tensor:
        length, out = self.batch.ids.shape[1], out.clone()
        times = out.shape[0] // self.batch.ids.shape[0]
        for rule in self.rules:
            if rule.gain is None or layer not in rule.layers:
                continue
            for b in range(out.shape[0]):
                if not self.batch.visual[b // times].any():
                    continue
                for r in range(out.shape[1]):
                    column = self.past + self.q - out.shape[1] + r
                    if column == length - 1:
                        self.gains[layer, b] = rule.gain(out[b, r], self.without[b // times][layer])
                    if column >= length - 1:
                        out[b, r] *= self.gains[layer, b][:, None]
        return out


def text_only_heads(model: nn.Module, batch: Batch, sample: int) -> dict[int, Tensor]:
    """Head outputs [H, D] per layer in the last row of a sample's prompt without images, run alone."""
    named = [
        value
        for key, value in model.config.to_dict().items()
        if isinstance(value, int) and any(word in key for word in ("start_token", "end_token", "boi", "eoi"))
    ]
    framing = torch.tensor([value for value in named if value in (START, END)], dtype=torch.long)
    keep = batch.real[sample] & ~batch.visual[sample] & ~torch.isin(batch.ids[sample], framing)
    ids = batch.ids[sample][keep][None]
    found: dict[int, Tensor] = {}
    handles = []
    for i, layer in enumerate(decoder_of(model).layers):
        attention: Any = next((m for m in layer.children() if hasattr(m, "layer_idx") and hasattr(m, "q_proj")), None)
        if attention is None:
            continue

        def hook(module: nn.Module, args: Any, i: int = i, heads: int = attention.config.num_attention_heads) -> None:
            found[i] = args[0][0, -1].view(heads, -1).clone()

        last = getattr(attention, "o_proj", None) or attention.out_proj
        handles.append(last.register_forward_pre_hook(hook))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    for handle in handles:
        handle.remove()
    return found
