"""What one training run is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmopt.core import Configured


@dataclass(frozen=True, kw_only=True)
class Settings(Configured):
    """Settings of one training run; rates of None follow from the model's width."""

    model: str
    data: tuple[str, ...]  # sources in turn
    out: Path
    steps_scorer: int
    steps_model: int
    batch_size: int
    seed: int = 0
    heads: int = 8
    pooling: str = "mean"
    rate_scorer: float | None = None
    rate_model: float | None = None
    tower: bool = False
    boxes: str | None = None
    images: str | None = None
    points: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    save_every: float = 120.0

    def __post_init__(self) -> None:
        if min(self.steps_scorer, self.steps_model) < 0 or self.batch_size < 1 or self.seed < 0:
            raise ValueError(
                f"steps and seed must be >= 0 and the batch size >= 1, got --steps-scorer {self.steps_scorer}, "
                f"--steps-model {self.steps_model}, --seed {self.seed}, --batch-size {self.batch_size}"
            )
        if self.out.is_file():
            raise ValueError(f"--out {self.out} is a file; give a directory")
        for name, rate in (("--lr-scorer", self.rate_scorer), ("--lr-model", self.rate_model)):
            if rate is not None and not 0 < rate < float("inf"):
                raise ValueError(f"{name} must be above 0, got {rate}")

    def request(self, *names: str) -> dict[str, Any]:
        """Return the settings that must be the same when a stage goes on."""
        common = ("model", "batch_size", "seed", "heads", "pooling", "rate_scorer", "boxes", "points", "dtype")
        return {"data": list(self.data)} | {name: getattr(self, name) for name in (*common, *names)}
