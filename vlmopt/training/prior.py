"""Stage 4: the language model alone learns, from scenes of habit among the images it knows, what goes together.

The tower stays as it is, so degraded images keep looking to it as they did, and the language model learns how far to
trust it. All answers are true: what comes out is no more than the odds of the training images. Where the evidence is
weak, the odds speak; on images in which company is rarer than in training, they speak wrongly.
"""

from __future__ import annotations

import random
from typing import Any

import torch

from vlmopt.synthetic import World
from vlmopt.synthetic.hallucination import DEGRADATIONS, hallucination

from .data import FIRST_TRAINING_SEED, Packer, Share
from .joint import FULL
from .language import Reader
from .loop import Marked

PRUNED = 0.5  # fraction of batches that are short of visual tokens
HABIT = 1 / 3  # fraction of the images that are scenes of habit, all degradations alike


class PriorStage:
    """Work for `Loop`: rendered images through the frozen tower and the language model."""

    def __init__(self, model: Any, reader: Reader, packer: Packer, share: Share) -> None:
        self.model, self.reader, self.packer, self.share = model, reader, packer, share

    def __call__(self, step: int) -> Marked:
        first = self.share.first(step)
        worlds = self.draw(first)
        batch = self.packer.pack(worlds, keep=self.keep(step), seed=first)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            tokens, _ = self.packer.architecture.see(self.model, worlds)
        kept = tokens.float().gather(1, batch.kept[..., None].expand(-1, -1, tokens.shape[-1]))
        marked: Marked = self.reader(batch, kept)
        return marked

    def draw(self, first: int) -> list[World]:
        """Return images of one size: scenes and screens as in the joint stage, then scenes of habit."""
        habits = round(HABIT * self.share.count)
        worlds = self.packer.draw(first, self.share.count - habits, objects=7, questions=14)
        seeds = range(FIRST_TRAINING_SEED + first, FIRST_TRAINING_SEED + first + habits)
        return worlds + [
            hallucination(seed, worlds[0].size, degradation=DEGRADATIONS[seed % len(DEGRADATIONS)], questions=8)
            for seed in seeds
        ]

    def keep(self, step: int) -> int:
        """Return all visual tokens but for a `PRUNED` fraction of batches. The same for all workers."""
        rng = random.Random(f"prior/{step}")
        return 16 * rng.randint(3, 12) if rng.random() < PRUNED else FULL
