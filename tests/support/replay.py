"""A recorded pruned forward, run again by the masked reference: the same embeddings and choices, nothing else of ours.

What the tower made (smaller pixels, left-out cells) and what methods merged is taken from the record; that later layers
see exactly the rows that stay, and every logit, is the reference's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.families import LAYERS, Batch, Family
from tests.support.reference import Reference, Removal, Stage, decoder_of
from vlmopt.api import session_of
from vlmopt.runtime.components.pruning import boundary
from vlmopt.runtime.components.pruning.record import Cuts

GIVEN = ("inputs_embeds", "visual_pos_masks", "deepstack_visual_embeds")


@dataclass
class Record:
    """What one forward of an optimized model gave its decoder, dropped and wrote."""

    given: dict[str, Any] = field(default_factory=dict)
    merged: dict[int, dict[tuple[int, int], Tensor]] = field(
        default_factory=dict
    )  # layer -> (row, column) -> embedding

    def removal(self, model: Any, batch: Batch, first: int = 0) -> Removal:
        """From the cuts of the last call, whose first column is that of the batch."""
        stages: dict[int, Stage] = {}
        session = session_of(model)
        positions = {method.layer: method.positions for method in session.policy.active}
        for cut in session.last.call.page.slot(Cuts):
            drop = cut.before & ~cut.keep
            if cut.layer in stages:
                drop = drop | stages[cut.layer].drop
            marker = next(m.marker for m in reversed(session.policy.active) if m.layer == cut.layer)
            stages[cut.layer] = Stage(cut.layer, drop, positions[cut.layer], marker)
        removal = Removal(batch.real, batch.span, list(stages.values()), LAYERS)
        for layer, written in self.merged.items():  # the decoder's loop adds nothing to them any more
            for later in range(layer, LAYERS):
                removal.markers[later] = [*removal.markers[later], *written]
        return removal


class Replay(Reference):
    """A reference that is given what was recorded."""

    record = Record()

    def __init__(self, family: Family) -> None:
        super().__init__(family.build("eager"))
        self.decoder.register_forward_pre_hook(self._give, with_kwargs=True)

    def _give(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, **self.record.given}

    def _write_markers(self, layer: int, hidden: Tensor) -> Tensor:
        hidden = super()._write_markers(layer, hidden)
        for (row, column), embedding in self.record.merged.get(layer, {}).items():
            hidden[row, column] = embedding
        return hidden


@contextmanager
def recording(model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Record]:
    """Records the forward that runs inside."""
    record = Record()

    def give(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        record.given = {name: copy.copy(kwargs[name]) for name in GIVEN if kwargs.get(name) is not None}

    def write(step: Any, context: Any, at: Any, choice: Any, rows: Any) -> Tensor:
        written = record.merged.setdefault(at.layer, {})
        for one in choice.written:
            columns = rows.log[one.batch_row, one.places].tolist()
            written |= {(one.batch_row, column): embed for column, embed in zip(columns, one.embeds, strict=True)}
        return original(step, context, at, choice, rows)

    original, hook = boundary.write_merged, decoder_of(model).register_forward_pre_hook(give, with_kwargs=True)
    with monkeypatch.context() as patch:
        patch.setattr(boundary, "write_merged", write)
        yield record
    hook.remove()


@torch.no_grad()
def replayed(reference: Replay, record: Record, removal: Removal, batch: Batch) -> Tensor:
    """Logits [B, L, V] of the reference."""
    reference.record = record
    return reference.remove(removal).forward(batch())


def ending_in_images(family: Family, rows: Any, bare: tuple[int, ...], padding_side: str = "left") -> Batch:
    """A batch in which the rows `bare` end with their last visual token, closing tokens of images taken off."""
    batch = family.inputs(rows)
    pieces = []
    for row in range(len(batch.ids)):
        real = batch.real[row].nonzero()[:, 0]
        end = int(batch.visual[row].nonzero()[-1, 0]) + 1 if row in bare else int(real[-1]) + 1
        pieces.append(slice(int(real[0]), end))
    width = max(piece.stop - piece.start for piece in pieces)

    def trimmed(value: Tensor, filler: int) -> Tensor:
        out = value.new_full((len(pieces), width), filler)
        for row, piece in enumerate(pieces):
            n = piece.stop - piece.start
            place = slice(width - n, width) if padding_side == "left" else slice(0, n)
            out[row, place] = value[row, piece]
        return out

    inputs = {
        name: trimmed(value, 0) if value.shape == batch.ids.shape else value for name, value in batch.inputs.items()
    }
    return Batch(inputs, trimmed(batch.span, -1))
