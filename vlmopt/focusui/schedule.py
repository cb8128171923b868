"""The learning rate over the steps of a training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, a constant rate, then a linear fall to zero over the last `cooldown` fraction of the steps."""

    steps: int
    rate: float
    warmup: int = 60
    cooldown: float = 0.25

    def __call__(self, step: int) -> float:
        left = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.rate * min(1.0, (step + 1) / self.warmup, max(left, 0.0))
