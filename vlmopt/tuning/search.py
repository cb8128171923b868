"""What every step of a search works with."""

from __future__ import annotations

from dataclasses import dataclass

from ..evaluation.data import Data
from ..evaluation.evaluate import Settings
from ..evaluation.processes import Processes
from ..evaluation.runner import Runner
from .marks import kinds
from .space import Space
from .splits import Split
from .wanted import Wanted


@dataclass(frozen=True, kw_only=True)
class Search:
    """One process's part of a search, ready to ask.

    Attributes:
        runner: what a run of every candidate on everything would be.
        notes: what was said before anything was asked.
    """

    settings: Settings
    wanted: Wanted
    team: Processes
    data: Data
    parts: Split
    space: Space
    runner: Runner
    notes: tuple[str, ...] = ()

    @property
    def kinds(self) -> set[str]:
        """How the questions are marked (`marks.kinds`)."""
        return kinds(sample for part in (self.parts.search, self.parts.holdout) for image in part for sample in image)

    @property
    def mixed(self) -> bool:
        return len(self.kinds) > 1
