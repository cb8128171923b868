"""Corrections inside the attention function: which rows, what they are told, and what comes of it.

The model's kernel runs first; rows and heads that a correction changed are then written over its output, so all else
keeps its bits. Rows are told apart by absolute position, never by the length of the query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlmopt.attention_fix import Correction, HeadCorrection, RowCorrection, RowView, correct_rows, scale_heads
from vlmopt.attention_fix.attention_rows import read_mask, sees_all
from vlmopt.attention_fix.base import Listening
from vlmopt.attention_fix.vision_heads import VisionHeads, head_divergence
from vlmopt.attention_fix.watchdog import Watched

from ...call import Call, DecodeStep, PromptStep, Session, Step
from ...component import AttentionPart
from ...points import AttentionCall
from ..marks import Marks
from ..watchdog import Repeating
from .rows import Editable, editable, generated_keys, rows_of_mask

VERIFIED = 16  # query rows up to which a step behind the prompt counts as decoding (candidates of assisted decoding)
MARKED = ("sink", "local", "summary")  # tables that hold what corrections marked or chose


@dataclass
class Record:
    """What one correction did in one layer during a call; tensors, summed up only when a report is asked for."""

    rows: Tensor | None = None  # Long[B] rows offered in prompts
    edited: Tensor | None = None  # [B, H] rows of prompts in which a head was changed
    steps: int = 0  # generated rows offered
    generated: Tensor | None = None  # [B, H] the same of generated rows
    measured: list[tuple[Tensor, dict[str, Tensor]]] = field(default_factory=list)  # (rows, scalars)
    gain: Tensor | None = None  # fp32 [B, H]
    listening: Listening | None = None  # what a diagnosis heard; in the record of layer 0


class Records(dict[tuple[str, int], Record]):
    """State of a call: (correction, layer) -> what it did."""


class Divergence(list[Tensor]):
    """State of a step, fp32 [B, H] per traced layer, and of its call, fp32 [B] per generated token."""


def record_of(call: Call, correction: Correction, layer: int) -> Record:
    """Return the record of a correction in a layer during a call."""
    return call.slot(Records).setdefault((correction.name, layer), Record())


class LayerCorrections(AttentionPart):
    """The corrections of one layer, in the order in which they act."""

    edits_text = True

    def __init__(self, session: Session, layer: int, corrections: Sequence[Correction]) -> None:
        self.session, self.layer = session, layer
        of_rows = [c for c in corrections if isinstance(c, RowCorrection)]
        self.rows = sorted(of_rows, key=lambda c: c.stage != "logits")  # a stable sort: the policy's order within
        self.deriving = {c.name for c in self.rows if type(c).sets is not RowCorrection.sets}
        self.heads = [c for c in corrections if isinstance(c, HeadCorrection)]
        self.fast = bool(self.rows) and all(c.passthrough == "fast" for c in self.rows)
        self.traced = any(isinstance(c, VisionHeads) and c.trace for c in self.heads)
        self.stage = session.stages.of(layer)

    def replaces(self, step: Step, at: AttentionCall) -> bool:
        """Return whether the explicit rows stand in for the kernel: while decoding, and only where asked for."""
        return self.fast and isinstance(step, DecodeStep) and at.query.shape[2] <= VERIFIED

    def compute(self, step: Step, at: AttentionCall) -> Tensor | None:
        """Compute every row, corrected."""
        if not (self.replaces(step, at) and step.slot(Marks).has_image):
            return None
        return self.correct(step, editable(step, self.stage, at.query.shape[2]), at, None)

    def behind(self, step: Step, at: AttentionCall, out: Tensor) -> Tensor:
        """Return correct rows, then scale heads."""
        if not step.slot(Marks).has_image:
            return out
        if self.rows and not self.replaces(step, at):
            rows = editable(step, self.stage, at.query.shape[2])
            out = self.correct(step, rows, at, out) if rows.any else out
        return self.scale(step, out) if self.heads else out

    def correct(self, step: Step, rows: Editable, at: AttentionCall, out: Tensor | None) -> Tensor:
        """Return the layer's attention output [B, Q, H, D], corrected; `out` None: computed here for every row."""
        query, key, value, mask, window = at.query, at.key, at.value, at.mask, at.window
        chosen = query if rows.index is None else query[:, :, rows.index]
        shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])

        def masks() -> tuple[Tensor, Tensor]:
            own = rows_of_mask(mask, rows.index, shape, key.device, window)
            return own, read_mask(own, (*shape[:2], chosen.shape[2], shape[3]), None, key.device)[0]

        if sees_all(query.shape[2], mask, None) and (window is None or key.shape[2] <= window):
            own = allowed = None  # the usual step of decoding
        else:
            own, allowed = step.remember(("row masks", self.stage, shape, window, str(key.device)), mask, masks)
        edits = [(c, self.view(step, c, rows, allowed, key)) for c in self.rows]
        fixed, edited = correct_rows(
            chosen, key, value, own, at.scaling, edits, softcap=at.softcap, observe=Watch(step, self.layer)
        )
        if out is None:
            return fixed
        where = edited.transpose(1, 2)[..., None]
        if rows.index is None:
            return torch.where(where, fixed, out)
        out = out.clone()  # the kernel's tensor may be a view of something it keeps
        out[:, rows.index] = torch.where(where, fixed, out[:, rows.index])
        return out

    def view(
        self, step: Step, correction: RowCorrection, rows: Editable, allowed: Tensor | None, key: Tensor
    ) -> RowView:
        """Return what the correction may know of the rows and keys of this step."""
        marks = step.slot(Marks)
        width, device = key.shape[2], key.device
        store = step.store(self.stage, self.layer)

        def of_keys(name: str, layer: int | None = None) -> Tensor:
            return marks.of_keys(step, store, width, name, layer).to(device)

        shared: dict[str, Any] = step.remember(("keys", store, width, str(device)), allowed, lambda: {
            "image": of_keys("image"), "span": of_keys("span"), "system": of_keys("system"),
            "generated": generated_keys(step, store, width, device), "known": {},
        })  # fmt: skip
        may = rows.kinds[correction.rows].to(device)
        if isinstance(correction, Watched) and correction.watchdog == "stop":
            tripped = step.call.slot(Repeating).tripped
            may = may if tripped is None else may & ~tripped.to(device)[:, None]
        named = {name: at for name in MARKED for at in ((name, None), (name, self.layer)) if at in marks.tables}
        sets = marks.sets(step, store, width, correction, named) if correction.name in self.deriving else None
        given: dict[str, Any] = {"sets": sets.to(device)} if sets is not None else {}
        given = given or {"marks": {name: of_keys(*table) for name, table in named.items()}}
        return RowView(self.layer, self.session.stages.depth, allowed, may, **given, **shared)

    def scale(self, step: Step, out: Tensor) -> Tensor:
        """Multiply head outputs by their gains on rows that predict a token.

        Gains are chosen when the prompt's last row passes, and kept from then on.
        """
        marks = step.slot(Marks)
        last = None  # while decoding, every row
        if isinstance(step, PromptStep):
            last = editable(step, self.stage, out.shape[1]).spread("last", out.shape[1]).to(out.device)
            if step.ends_prompt:
                self.choose(step, out, last)
        elif self.traced:
            self.trace(step, out[:, -1])
        gain = marks.gains.get(self.layer)
        return out if gain is None else scale_heads(out, gain.to(out.device), last)

    def trace(self, step: Step, heads: Tensor) -> None:
        """Record how far head outputs [B, H, D] are from those without images."""
        without = step.slot(Marks).stream.heads.get(self.layer)
        if without is not None:
            step.slot(Divergence).append(head_divergence(heads, without.to(heads.device)).to(step.device))

    def choose(self, step: PromptStep, out: Tensor, last: Tensor) -> None:
        """Choose gains from the head outputs of every sample's last prompt row, when it first passes."""
        marks = step.slot(Marks)
        first = last.long().argmax(1)  # rows behind it are candidates of assisted decoding
        heads = out[torch.arange(len(out), device=out.device), first]
        stream = None if marks.stream is None else marks.stream.heads.get(self.layer)
        again = step.once_more  # a decoder may then leave out that row in its last layers
        if self.traced:
            self.trace(step, out[:, -1] if again else heads)
        total = torch.ones(heads.shape[:2], device=out.device, dtype=torch.float32)
        for correction in self.heads:
            record = record_of(step.call, correction, self.layer)
            if record.gain is None or not again:
                gain = correction.gain(heads, None if stream is None else stream.to(out.device), self.layer)
                record.gain = torch.where(marks.seen.to(out.device)[:, None], gain.to(out.device).expand_as(total), 1.0)
            total = total * record.gain
        marks.gains[self.layer] = total


class Watch:
    """Record what corrections saw and did, without looking at any number."""

    def __init__(self, step: Step, layer: int) -> None:
        self.step, self.layer = step, layer
        self.prompt = isinstance(step, PromptStep)

    def __call__(self, correction: RowCorrection, values: Tensor, view: RowView, edited: Tensor) -> None:
        if isinstance(self.step, PromptStep) and (self.step.again or self.step.call.ledger.prompt is not None):
            return  # the prompt once more, in a backward pass or without a cache
        record = record_of(self.step.call, correction, self.layer)
        total = edited[:, :, 0] if edited.shape[2] == 1 else edited.sum(2)
        if self.prompt:
            offered = view.rows.sum(1)
            with torch.no_grad():  # a checkpointed layer must keep the same tensors when it runs again, unwatched
                record.measured.append((offered.sum(), correction.measure(values, view)))
            record.rows = offered if record.rows is None else record.rows + offered
            record.edited = total.long() if record.edited is None else record.edited + total
        else:
            record.steps += view.rows.shape[1]
            record.generated = total.long() if record.generated is None else record.generated.add_(total)
