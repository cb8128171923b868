"""Run the same sequence without its images beside a call: what heads and logits would be from the text alone.

Works on the embeddings that the decoder is given, so it needs no tokenizer and no second prompt: visual tokens and the
family's image delimiters are left out, positions are contiguous, on M-RoPE models alike on every axis.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from vlmopt.attention_fix import TextOnly

from ..arguments import PER_LAYER
from ..call import PromptStep, Session, Step
from ..capture import Capture
from ..compat import cache_name
from ..followed import PerSample
from ..padding import real
from ..points import AttentionCall, SidePass
from ..side_forward import side_forward


@dataclass(frozen=True, eq=False)
class Part:
    """Embeddings [B, q, D] of one step, and which of them are text."""

    start: int  # logical index of the first
    embeds: Tensor
    text: Tensor  # Bool[B, q]
    per_layer: Tensor | None = None  # [B, q, layers, d]

    def before(self, place: int) -> Part:
        n = max(place - self.start, 0)
        per_layer = None if self.per_layer is None else self.per_layer[:, :n]
        return Part(self.start, self.embeds[:, :n], self.text[:, :n], per_layer)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Part:
        per_layer = None if self.per_layer is None else change(self.per_layer)
        return Part(self.start, change(self.embeds), change(self.text), per_layer)


class TextOnlyCapture(Capture[TextOnly]):
    """Capture `TextOnly`; the component that keeps the stream reads its heads."""


@dataclass(frozen=True, eq=False)
class HeadOutputs(SidePass):
    """Record what heads make of one row of every sample."""

    layers: frozenset[int]
    rows: Tensor  # Long[B]
    found: dict[int, Tensor]  # layer -> [B, H, D]

    def behind_kernel(self, at: AttentionCall, out: Tensor) -> None:
        """Keep it where it is asked for."""
        if at.layer in self.layers:
            self.found[at.layer] = out[torch.arange(len(out), device=out.device), self.rows.to(out.device)]


@dataclass(frozen=True, eq=False)
class Run:
    """The text that has run, and the last row's place in it."""

    cache: Any  # None: it ran once
    real: Tensor  # Bool[B, T]
    position: Tensor  # Long[B] of the last row


@dataclass
class TextStream(PerSample):
    """One sequence's text so far; `heads` and `logits` are those of its last row.

    `lasting` streams keep a cache and go along with every generated token; others run once per prompt.
    """

    lasting: bool
    layers: frozenset[int]  # whose heads are taken down
    parts: list[Part] = field(default_factory=list)
    heads: dict[int, Tensor] = field(default_factory=dict)  # layer -> [B, H, D]
    logits: Tensor | None = None  # [B, V]
    ran: Run | None = None  # of a lasting stream, behind the prompt

    def __deepcopy__(self, memo: dict[int, Any]) -> TextStream:
        """Give a copied cache a stream of its own, over the same embeddings."""
        twin = copy.copy(self)
        twin.parts, twin.heads = list(self.parts), dict(self.heads)
        if self.ran is not None:
            twin.ran = replace(self.ran, cache=copy.deepcopy(self.ran.cache, memo))
        return twin

    def map_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply it to the text, and to what ran."""
        self.parts = [part.mapped(change) for part in self.parts]
        self.heads = {layer: change(head) for layer, head in self.heads.items()}
        self.logits = None if self.logits is None else change(self.logits)
        if self.ran is not None:
            if self.ran.cache is not None:
                self.ran.cache.reorder_cache(change(torch.arange(len(self.ran.real), device=self.ran.real.device)))
            self.ran = replace(self.ran, real=change(self.ran.real), position=change(self.ran.position))

    def take(self, step: Step) -> None:
        """Record the text of this step."""
        self.parts = [part.before(step.past) for part in self.parts if part.start < step.past]
        text, ids = real(step), step.arguments.input_ids
        if isinstance(step, PromptStep) and step.context is not None:
            text = text & ~step.context.visual.to(text.device)
        if ids is not None and ids.shape[1] == step.q:
            between = ids.new_tensor(sorted(step.call.session.structure.delimiters))
            text = text & ~torch.isin(ids, between).to(text.device)
        self.parts.append(Part(step.past, step.embeds.detach(), text, step.given.get(PER_LAYER)))

    def prompt(self, step: PromptStep) -> None:
        """Run all text up to the end of this step, from the start.

        Raises:
            ValueError: a sample has no text at all.
        """
        embeds = torch.cat([part.embeds for part in self.parts], 1)
        text = torch.cat([part.text for part in self.parts], 1)
        counts = text.sum(1)
        if not bool(counts.all()):
            raise ValueError(
                f"sample {int(counts.argmin())} is images only: without them nothing is left to compare with. Give "
                "the prompt a text, or use vision_heads with mode='static'"
            )
        width = int(counts.max())
        order = text.long().sort(dim=1, stable=True).indices[:, -width:]  # text last, in order: left padding
        valid = text.gather(1, order)
        positions = (valid.long().cumsum(1) - 1).clamp_min(0)
        end = None if step.once_more else step.call.request.length
        inside = self.places() < (end if end is not None else step.past + step.q)
        last = (valid & inside.to(valid.device)[order]).long() * torch.arange(1, width + 1, device=valid.device)
        taken = [part.per_layer for part in self.parts if part.per_layer is not None]
        per_layer = torch.cat(taken, 1) if taken else None
        batch = torch.arange(len(order), device=order.device)[:, None]
        cache = DynamicCache(config=step.call.session.structure.config) if self.lasting else None
        ran = Run(cache, valid, positions[:, -1])
        per_layer = None if per_layer is None else per_layer[batch, order]
        self.run(step, ran, embeds[batch, order], positions, last.argmax(1), per_layer)

    def places(self) -> Tensor:
        """Return the logical index of everything in `parts`, Long."""
        return torch.cat([torch.arange(p.start, p.start + p.embeds.shape[1]) for p in self.parts])

    def token(self, step: Step, ran: Run) -> None:
        """Go along with generated tokens, one row each."""
        embeds, text = self.parts[-1].embeds, self.parts[-1].text
        positions = ran.position[:, None] + torch.arange(1, step.q + 1, device=ran.position.device)
        ran = Run(ran.cache, torch.cat([ran.real, text], 1), positions[:, -1])
        rows = torch.full((step.batch,), step.q - 1, device=embeds.device)
        self.run(step, ran, embeds, positions, rows, self.parts[-1].per_layer)

    @torch.no_grad()
    def run(
        self, step: Step, ran: Run, embeds: Tensor, positions: Tensor, rows: Tensor, per_layer: Tensor | None
    ) -> None:
        """Run one pass of the decoder below its hooks; keep head outputs of `rows` Long[B] and last-row logits.

        Args:
            ran: the text up to the end of this pass.
        """
        session = step.call.session
        axes = step.positions.shape[0] if step.positions.ndim == 3 else 0
        kwargs: dict[str, Any] = {} if per_layer is None else {PER_LAYER: per_layer}
        out = side_forward(
            HeadOutputs(self.layers, rows, self.heads),
            session.structure.decoder.forward,
            inputs_embeds=embeds,
            attention_mask=None if bool(ran.real.all()) else ran.real.long(),
            position_ids=positions.expand(axes, -1, -1) if axes else positions,
            use_cache=self.lasting,
            **{cache_name(type(session.structure.decoder).forward): ran.cache},
            **kwargs,
        )
        if self.lasting:
            self.ran = ran
            self.logits = vocabulary(session, out[0][:, -1])


def vocabulary(session: Session, hidden: Tensor) -> Tensor:
    """Return logits fp32 [B, V], as the model's head makes them."""
    logits: Tensor = session.model.get_output_embeddings()(hidden).float()
    cap = getattr(session.structure.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)
