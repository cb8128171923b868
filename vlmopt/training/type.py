"""Stage 5: the tower learns to read what web pages set in type, beside the images it knows.

As in stage 1, every cell is told the words that are true of it; most images are sheets full of type.
"""

from __future__ import annotations

from typing import Any

from vlmopt.synthetic.web.stored import Windows

from .data import Packer, Share
from .loop import Marked
from .tower import look
from .web import of_windows

SIZE = (224, 224)
DRAWN = 1 / 6  # fraction of the images that are scenes and screens


class TypeStage:
    """Work for `Loop`: batches of images through the tower alone."""

    def __init__(self, model: Any, packer: Packer, share: Share, sheets: Windows) -> None:
        self.model, self.packer, self.share, self.sheets = model, packer, share, sheets

    def __call__(self, step: int) -> Marked:
        count, first = self.share.count, self.share.first(step)
        drawn = round(DRAWN * count)
        known = self.packer.draw(first, drawn, objects=7, questions=0, size=SIZE)
        _, loss, counts = look(self.model, self.packer, known)
        _, typed_loss, typed_counts = look(self.model, self.packer, self.sheets.draw(first, count - drawn, SIZE))
        return loss + typed_loss, counts | of_windows(typed_counts)
