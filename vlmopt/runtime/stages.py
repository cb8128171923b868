"""Stages: decoder layers between two cuts, which run on the same rows."""

from __future__ import annotations

from dataclasses import dataclass

from ..policy import Policy


@dataclass(frozen=True)
class Stages:
    """Where rows leave: the k-th cut starts stage k, and stage 0 has all rows."""

    depth: int  # decoder layers
    cuts: tuple[int, ...]  # the layer before which each is made, ascending
    repack: bool  # positions count the rows of their stage

    @property
    def last(self) -> int:
        """The stage of the last layer."""
        return len(self.cuts)

    def of(self, layer: int) -> int:
        """Return the stage of a layer."""
        return sum(cut <= layer for cut in self.cuts)


def stages_of(policy: Policy, depth: int) -> Stages:
    """Return the stages that a policy makes of `depth` layers."""
    cuts = policy.active
    return Stages(depth, tuple(cut.layer for cut in cuts), any(cut.numbering == "repack" for cut in cuts))
