"""Stage 3: tower and language model together on rendered images, growing to all visual tokens.

The tower keeps its dense loss as a second opinion. A part of the batches stays short of tokens to the end, so that the
finished model has met pruned images.
"""

from __future__ import annotations

import random
from typing import Any

from .data import Packer, Share
from .language import Reader
from .loop import Marked
from .tower import look

DENSE_WEIGHT = 0.3
SHORT, FULL = 96, 10_000  # visual tokens kept; FULL is more than any image has
PRUNED = 0.25  # fraction of batches that stay short once the rest is full


class JointStage:
    """Work for `Loop`: batches of rendered images through the whole model."""

    def __init__(self, model: Any, reader: Reader, packer: Packer, share: Share, steps: int) -> None:
        self.model, self.reader, self.packer = model, reader, packer
        self.share, self.steps = share, steps

    def __call__(self, step: int) -> Marked:
        first = self.share.first(step)
        worlds = self.packer.draw(first, self.share.count, objects=7, questions=14)
        batch = self.packer.pack(worlds, keep=self.keep(step), seed=first)
        tokens, cells, cell_counts = look(self.model, self.packer, worlds)
        kept = tokens.gather(1, batch.kept[..., None].expand(-1, -1, tokens.shape[-1]))
        answers, counts = self.reader(batch, kept)
        return answers + DENSE_WEIGHT * cells, counts | cell_counts

    def keep(self, step: int) -> int:
        """Return the tokens to keep: few at first, then all, but for a `PRUNED` fraction of batches of any length.

        The same for all workers.
        """
        if step < 0.1 * self.steps:
            return SHORT
        rng = random.Random(f"keep/{step}")
        return 16 * rng.randint(3, 12) if rng.random() < PRUNED else FULL
