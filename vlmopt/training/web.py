"""Stage 6: tower and language model together, on windows of rendered web pages beside the images they know.

Scenes of habit go on being seen with the tower as it is: it is not told what is true of their degraded images.
"""

from __future__ import annotations

import random
from typing import Any

import torch

from vlmopt.synthetic import World
from vlmopt.synthetic.hallucination import DEGRADATIONS, hallucination
from vlmopt.synthetic.web.stored import Windows

from .data import FIRST_TRAINING_SEED, Packer, Share
from .joint import DENSE_WEIGHT, FULL
from .language import Reader
from .loop import Counts, Marked
from .tower import look

PRUNED = 0.5  # fraction of batches that are short of visual tokens
WEB, HABIT = 0.5, 1 / 6  # fractions of the images; the rest are drawn scenes and screens


class WebStage:
    """Work for `Loop`: rendered images of one size through the whole model."""

    def __init__(self, model: Any, reader: Reader, packer: Packer, share: Share, windows: Windows) -> None:
        self.model, self.reader, self.packer, self.share, self.windows = model, reader, packer, share, windows

    def __call__(self, step: int) -> Marked:
        first = self.share.first(step)
        drawn, web, habits = self.draw(first)
        tokens, cells, counts = look(self.model, self.packer, drawn)
        web_tokens, web_cells, web_counts = look(self.model, self.packer, web)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            habit_tokens, _ = self.packer.architecture.see(self.model, habits)
        batch = self.packer.pack(drawn + web + habits, keep=self.keep(step), seed=first)
        seen = torch.cat([tokens, web_tokens, habit_tokens.float()])
        kept = seen.gather(1, batch.kept[..., None].expand(-1, -1, seen.shape[-1]))
        answers, right = self.reader(batch, kept)
        return answers + DENSE_WEIGHT * (cells + web_cells), right | counts | of_windows(web_counts)

    def draw(self, first: int) -> tuple[list[World], list[World], list[World]]:
        """Return scenes and screens, windows, and scenes of habit, all of one size."""
        count = self.share.count
        web, habits = round(WEB * count), round(HABIT * count)
        drawn = self.packer.draw(first, count - web - habits, objects=7, questions=14)
        seeds = range(FIRST_TRAINING_SEED + first, FIRST_TRAINING_SEED + first + habits)
        size = drawn[0].size
        degraded: list[World] = [
            hallucination(seed, size, degradation=DEGRADATIONS[seed % len(DEGRADATIONS)], questions=8) for seed in seeds
        ]
        return drawn, self.windows.draw(first, web, size), degraded

    def keep(self, step: int) -> int:
        """Return all visual tokens but for a `PRUNED` fraction of batches. The same for all workers."""
        rng = random.Random(f"web/{step}")
        return 16 * rng.randint(2, 12) if rng.random() < PRUNED else FULL


def of_windows(counts: Counts) -> Counts:
    """Give the counts names of their own; windows are neither scenes nor drawn screens."""
    out: Counts = {}
    for kind in ("name", "sort"):
        pairs = [counts[f"{family}_{kind}"] for family in ("scene", "screen") if f"{family}_{kind}" in counts]
        out[f"web_{kind}"] = (sum(right for right, _ in pairs), sum(of for _, of in pairs))
    return out
