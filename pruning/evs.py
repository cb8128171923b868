"""EVS: keep what changes from one video frame to the next."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmopt.core.settings import setting

from .base import ScoreSelector, register
from .budget import ALLOCATIONS, temporal_change
from .signals import Signal, VisualEmbeds
from .tokens import Selection, VisualTokens
from .uniform import spread

NEW = 2.0  # `temporal_change` of a cell without a predecessor
BACK = {"previous": (1,), "dycoke": (0, 1, 2, 1)}  # frames to the reference


@register("evs")
@dataclass(frozen=True, kw_only=True)
class EVS(ScoreSelector):
    """Keep cells that differ most from the same cell one frame earlier, over the video, the first frame before all.

    Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference (arXiv 2510.14624):
    1 - cos(z[t], z[t - 1]) of projector outputs z. Where the budget does not cover the first frame (an image is nothing
    but a first frame), it is spread evenly over it. Drift slower than the frame rate goes unseen, since the reference
    is the frame before, not the last one that stayed. reference="dycoke": groups of four frames. The first one stays,
    the second and third are compared with it, and the fourth with the third. That is the temporal part of DyCoke:
    Dynamic Compression of Tokens for Fast Video Large Language Models (arXiv 2411.15024), with one ranking for all
    frames in place of a fixed share per frame.
    """

    reads = "change between frames"

    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    allocation: str = setting(
        "global", "How several videos share the budget; global: one pool, by change.", "str", choices=ALLOCATIONS
    )
    segment: str = setting("image", "Always image: a frame by itself has no change.", "str", choices=("image",))
    reference: str = setting(
        "previous",
        "What a cell is compared with: previous: the frame before; dycoke: inside groups of four frames, frames 1 and "
        "2 with 0, frame 3 with 2.",
        "str",
        choices=tuple(BACK),
    )
    paper_compat: bool = setting(
        False, "As released: the budget rounded down, but the first frame always whole, even beyond it.", "bool"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "adaptive", self.paper_compat)
        if self.paper_compat and self.reference != "previous":
            raise ValueError(
                f"{self.label}: paper_compat=True is EVS as released, whose reference is the frame before; got "
                f"reference={self.reference!r}; leave one out"
            )

    def budget(self, total: int) -> int:
        if self.paper_compat and self.keep_ratio is not None:
            return max(int(self.keep_ratio * total), 1)
        return super().budget(total)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({VisualEmbeds()})

    def score(self, tokens: VisualTokens) -> Tensor:
        return temporal_change(tokens, BACK[self.reference])

    def take(self, tokens: VisualTokens, k: int, scores: Tensor) -> Selection:
        order = scores.sort(descending=True, stable=True).indices
        new = int((scores >= NEW).sum())
        if self.paper_compat:
            k = max(k, new)
        if k < new:  # all alike: by index they would be the top rows
            first = order[:new]
            return Selection(first[spread(tokens.coords[first].cpu(), k).to(first.device)], scores, {"spread": True})
        return Selection(order[:k].sort().values, scores, {"spread": False})
