"""Let the sequence's text run beside it, for methods that compare with what would be said without the images."""

from __future__ import annotations

from typing import Any

import torch

from vlmopt.attention_fix import HeadCorrection, TextOnly, VisionHeads
from vlmopt.attention_fix.vision_heads import token_divergence

from ...decoding import TextContrast
from ..call import Call, PromptStep, Session, Step
from ..captures.text_only import TextStream
from ..component import Account, Component
from .corrections.check import by_layer
from .corrections.layer import Divergence
from .decoding import Told, contrast_of
from .marks import Marks


class TextBeside(Component):
    """Keep the stream with the marks of the sequence, and book how far heads are from those without images."""

    def __init__(self, session: Session, guided: bool, traced: VisionHeads | None) -> None:
        super().__init__(session)
        self.guided, self.traced = guided, traced
        layers = by_layer(session.structure, session.policy)
        heads = [layer for layer, found in layers.items() if any(isinstance(c, HeadCorrection) for c in found)]
        self.layers = frozenset(heads)

    @classmethod
    def of(cls, session: Session) -> TextBeside | None:
        corrections, guided = session.policy.corrections, isinstance(contrast_of(session), TextContrast)
        traced = next((c for c in corrections if isinstance(c, VisionHeads) and c.trace), None)
        wanted = guided or traced is not None or any(TextOnly() in c.needs for c in corrections)
        return cls(session, guided, traced) if wanted else None

    def open_step(self, step: Step, cache: Any) -> None:
        """Take the text of this step, and run it where the sequence has shown an image."""
        marks, request = step.find(Marks), step.call.request
        if marks is None:
            return
        if self.traced is not None and request.branches is not None:
            why = f"{request.branches}: the second stream goes along with one text"
            step.call.skip(f"trace of {self.traced.name}", why)
        lasting = self.guided or (self.traced is not None and request.branches is None)
        marks.stream = marks.stream or TextStream(lasting, self.layers)
        marks.stream.take(step)
        if marks.has_image:
            self.go_along(step, marks.stream)

    def go_along(self, step: Step, stream: TextStream) -> None:
        """Run the text beside the prompt's last row, and beside every generated one where the stream lasts."""
        if not isinstance(step, PromptStep):
            if stream.ran is not None:
                stream.token(step, stream.ran)
                self.book(step, stream, step.batch * step.q)
        elif step.ends_prompt and (stream.lasting or not step.once_more):  # else heads were chosen in the first pass
            with step.call.ledger.timed(step.call.page.scoring):
                stream.prompt(step)
            if stream.ran is not None:
                self.book(step, stream, stream.ran.real.numel())

    def book(self, step: Step, stream: TextStream, rows: int) -> None:
        """Let steps of decoding know what the text alone says."""
        if self.guided:
            step.call.slot(Told).ran(rows, stream.logits, None if stream.ran is None else stream.ran.cache)

    def close_step(self, step: Step, cache: Any) -> None:
        """Book the divergence of the token that this step makes."""
        found = step.slot(Divergence)
        if found and self.traced is not None and step.call.request.branches is None:
            step.call.slot(Divergence).append(token_divergence(found, self.traced.trace_heads))

    def report(self, call: Call) -> Account:
        """Report the divergence of every generated token, where it is traced."""
        found = call.slot(Divergence)
        return Account({"token_divergence": torch.stack(list(found), 1).tolist()}) if found else Account()
