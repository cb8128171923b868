"""A random scorer and marker under the name "untrained" that fit every tiny family, so that tables may name one."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.tiny import TEXT
from tests.support.visual import scorer
from vlmopt.scorers import TrainedScorer

WIDTH = TEXT["hidden_size"]


class Untrained(TrainedScorer):
    def check(self, source: str, model: Any, marker: bool) -> None:
        assert model["hidden_size"] == WIDTH


def marker(width: int = WIDTH) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(7))


def loading(original: Any) -> Any:
    """`vlmopt.scorers.load` that knows one more name."""
    return lambda source, **options: (
        Untrained(scorer(WIDTH), marker(), {}) if source == "untrained" else original(source, **options)
    )
