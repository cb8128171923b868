"""The UI graph: neighbouring cells that look alike form one component; members of small components stand out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmopt.core.settings import setting

from .base import ScoreSelector, register
from .shuffled import Shuffled
from .signals import Pixels, PixelScale, Signal
from .tokens import VisualTokens

THRESHOLD = 2 / 4704**0.5  # the paper's distance of 2 over the 4704 values of a 28-px cell, as a root mean square
WEIGHTINGS = ("log", "inverse", "sqrt")
VALUES_AT_ONCE = 2**19  # pieces that fit a CPU core's cache, so that memory is read about once


def ui_graph(
    pixels: Tensor,
    scale: Tensor,
    coords: Tensor,
    frame: Tensor,
    threshold: float = THRESHOLD,
    weighting: str = "log",
) -> Tensor:
    """Return the weight of every cell by the size of its component: 1 for a cell unlike its neighbours, else less.

    FocusUI (arXiv 2601.03928): 4-neighbours are joined where their pixels differ by less than a threshold; a component
    of n cells gives each 1 / max(1, ln(n + 1)). Stated there for 28-px cells whose pixels stand twice for two temporal
    copies; the root mean square makes it the same for cells of any size.

    Args:
        pixels: [n, c, v], any offset and scale per channel. scale: [c], what one unit is on values in 0..1.
        coords: Long[n, 3] (t, y, x), no two alike within a frame. frame: Long[n]; cells of different frames stay apart.
        threshold: joins where the root mean square difference on values in 0..1 is smaller.
        weighting: "log", or "inverse": 1 / n, or "sqrt": 1 / sqrt(n).

    Returns:
        fp32 [n] in 0..1.
    """
    here = torch.arange(len(coords), device=coords.device)
    others = neighbours(coords, frame)
    joined = (rms(pixels, scale, others) < threshold) & (others != here)
    label = components(len(here), here.expand_as(others)[joined], others[joined])
    size = torch.bincount(label, minlength=len(label))[label].float()
    if weighting == "inverse":
        return 1 / size
    return size.rsqrt() if weighting == "sqrt" else 1 / size.log1p().clamp_min(1)


def neighbours(coords: Tensor, frame: Tensor) -> Tensor:
    """Return Long[2, n]: the cell to the right of each cell in its frame, and the one below; itself where none is."""
    y, x = coords[:, 1:].T
    frames, height, width = (torch.stack([frame, y, x]).amax(1) + 2).tolist()  # with an empty row and column behind
    table = torch.full((frames, height, width), -1, device=x.device)
    here = torch.arange(len(x), device=x.device)
    table[frame, y, x] = here
    table[:, -1, -1] = -1  # cells without a place (-1, -1)
    others = torch.stack([table[frame, y, x + 1], table[frame, y + 1, x]])
    return torch.where((others >= 0) & (y >= 0), others, here)


def rms(pixels: Tensor, scale: Tensor, others: Tensor) -> Tensor:
    """Return fp32 [m, n]: the root mean square difference of each cell of `pixels` [n, c, v] to m others Long[m, n]."""
    pixels = pixels.float()
    found = pixels.new_empty(*others.shape, pixels.shape[1])
    step = max(VALUES_AT_ONCE // pixels[0].numel(), 1) if pixels.device.type == "cpu" else len(pixels)
    room = torch.empty_like(pixels[:step])  # used again: fresh memory costs more than the arithmetic
    for start in range(0, len(pixels), step):
        part = slice(start, start + step)
        for i, other in enumerate(others[:, part]):
            apart = torch.index_select(pixels, 0, other, out=room[: len(other)]).sub_(pixels[part])
            torch.linalg.vector_norm(apart, dim=2, out=found[i, part])
    return (found.square() @ scale.to(found).square() / pixels[0].numel()).sqrt()


def components(n: int, first: Tensor, second: Tensor) -> Tensor:
    """Return Long[n]: the smallest index of each node's component, for edges between `first` and `second` Long[e].

    Every turn hangs each root on the smallest root that an edge leads to, then flattens the trees by pointer jumping:
    a few turns, whatever the shape of the components.
    """
    label = torch.arange(n, device=first.device)
    while True:
        one, other = label[first], label[second]
        if torch.equal(one, other):
            return label
        low, high = torch.minimum(one, other), torch.maximum(one, other)
        label = label.scatter_reduce(0, high, low, "amin", include_self=True)
        while not torch.equal(label, jumped := label[label]):
            label = jumped


@register("ui_graph")
@dataclass(frozen=True, kw_only=True)
class UIGraph(Shuffled, ScoreSelector):
    """Keep cells of small components of the UI graph first: text, icons and edges before flat areas.

    The rule-based half of FocusUI's training target (arXiv 2601.03928), alone: it knows no instruction. Images and
    frames each have a graph of their own. On photographs hardly any neighbours are alike and all cells score 1; equal
    scores are drawn by lot.
    """

    reads = "pixels"

    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    threshold: float = setting(
        THRESHOLD,
        "Neighbours are joined below this root mean square difference of their pixel values, which are in 0..1.",
        "float",
        min=0,
        max=1,
    )
    weighting: str = setting(
        "log",
        "Score of a cell in a component of n: log: 1 / max(1, ln(n + 1)); inverse: 1 / n; sqrt: 1 / sqrt(n).",
        "str",
        choices=WEIGHTINGS,
    )

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Pixels(repeated=False), PixelScale()})

    def score(self, tokens: VisualTokens) -> Tensor:
        return graph_of(tokens, self.threshold, self.weighting)


def graph_of(tokens: VisualTokens, threshold: float = THRESHOLD, weighting: str = "log") -> Tensor:
    """Return fp32 [n]: `ui_graph` of the current tokens."""
    pixels, scale = tokens.signals[Pixels(repeated=False)], tokens.signals[PixelScale()]
    return ui_graph(pixels, scale, tokens.coords, tokens.frame, threshold, weighting)
