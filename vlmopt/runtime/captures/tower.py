"""Capture what the patches of whole images received in a block of the vision tower, image by image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmopt.attention_fix import Tower
from vlmopt.pruning import VisionAttention

from ..call import PromptStep, Session
from ..capture import Capture
from ..context import ImagePart, VisualContext
from ..place import Place
from ..structure import ModelStructure
from .projector import patch_rows
from .vision_attention import VisionAttentionCapture, received


@dataclass(frozen=True, eq=False)
class OneImage:
    """One image of a sample, as far as a chunk of the prompt holds it."""

    index: Tensor  # Long[k] logical offsets inside the chunk
    inside: Tensor  # Long[k]: which of the image's tokens these are
    values: Tensor  # fp32 [n] of all of the image's tokens


class TowerCapture(Capture[Tower]):
    """Capture `Tower`."""

    tower = VisionAttentionCapture()

    def check(self, model: Any, structure: ModelStructure, method: Any, need: Tower) -> None:
        self.tower.check(model, structure, method, VisionAttention(need.block))

    def install(self, session: Session, need: Tower) -> None:
        self.tower.install(session, VisionAttention(need.block))

    def missing(self, step: PromptStep, context: VisualContext, need: Tower) -> str | None:
        return self.tower.missing(step, context, VisionAttention(need.block))

    def read(self, need: Tower, at: Place) -> list[OneImage]:
        """Return every image of one sample, in order."""
        signal = VisionAttention(need.block)
        parts = [part for part in at.context.parts if part.whole.batch_row == at.batch_row]
        if parts:
            return [OneImage(part.index, part.inside, of_whole(signal, at, part)) for part in parts]
        values = self.tower.read(signal, at)
        number = torch.full((at.step.q,), -1, device=at.logical.device)
        number[at.logical] = torch.arange(len(at.logical), device=number.device)
        found = []
        for span in (s for s in at.context.spans if s.batch_row == at.batch_row):
            index = span.index.to(number.device)
            every = torch.arange(len(index), device=index.device)
            found.append(OneImage(index, every, values[number[index].to(values.device)]))
        return found


def of_whole(need: VisionAttention, at: Place, part: ImagePart) -> Tensor:
    """Return fp32 [n] of a whole image of which this chunk holds a part; 0 where no row became a token."""
    per_row = received(need, at)
    rows = patch_rows(at.step, at.context)[at.batch_row, part.index.to(at.step.embeds.device)].to(per_row.device)
    known = rows >= 0
    if not bool(known.any()):
        return per_row.new_zeros(len(part.whole.index))
    patch = (part.whole.coords >= 0).all(1).to(per_row.device)  # row ends and the like are no rows
    place = (patch.cumsum(0) - 1).masked_fill(~patch, -1)
    start = (rows - place[part.inside.to(rows.device)])[known].median()  # equal rows may be taken for one another
    own = start + place
    fits = patch & (own >= 0) & (own < len(per_row))
    return torch.where(fits, per_row[own.clamp(0, len(per_row) - 1)], torch.zeros_like(own, dtype=per_row.dtype))
