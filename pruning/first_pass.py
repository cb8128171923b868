"""First pass: keep what the question attends to when the model reads the screenshot at a lower resolution."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmopt.core.settings import setting

from .base import ScoreSelector, register
from .shuffled import Shuffled
from .signals import FirstPassRows, Pixels, PixelScale, Signal
from .similarity import rank
from .tokens import VisualTokens
from .trend import fit_axes, fit_robust, grid_place, raster_place
from .ui_graph import WEIGHTINGS, graph_of

TRENDS = ("raster", "thw")


@register("first_pass")
@dataclass(frozen=True, kw_only=True)
class FirstPass(Shuffled, ScoreSelector):
    """Keep cells that the question attends to in a first pass over a smaller image, mixed with the UI graph.

    Our stand-in for the trained scorer of FocusUI (arXiv 2601.03928), without training and not validated there. The
    score is alpha times the rank (0..1) of the attention, plus 1 - alpha times the UI-graph score. The attention is
    divided by its own positional trend first (Attention Debiasing, arXiv 2508.17807). The first pass runs the lower
    layers on a prompt with about 1 / shrink^2 of the visual tokens. The cells of a block share its attention, so the
    graph decides among them. Without text behind the last image the graph alone decides.
    """

    reads = "attention, pixels"
    query_aware = True

    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    attention_layer: int | None = setting(
        None, "Layer whose attention decides; without one the layer with attention nearest to 2/5 of the depth.", "int",
        min=0,
    )  # fmt: skip
    shrink: int = setting(2, "Factor by which the sides of the image shrink for the first pass.", "int", min=2)
    alpha: float = setting(
        0.8, "Weight of the attention against the UI graph; 1 needs no pixels.", "float", above=0, max=1
    )
    weighting: str = setting("log", "Weighting of the UI graph, as for `ui_graph`.", "str", choices=WEIGHTINGS)
    debias: float = setting(
        0.5, "Share of the positional trend of the sample's own attention that is divided out.", "float", min=0, max=1
    )
    axes: str = setting(
        "raster",
        "What the trend runs along: the place in the sequence (raster), or frame, row and column (thw).",
        "str",
        choices=TRENDS,
    )

    @property
    def rows(self) -> FirstPassRows:
        """The signal with the attention."""
        return FirstPassRows(self.attention_layer, shrink=self.shrink)

    @property
    def needs(self) -> frozenset[Signal]:
        graph = {Pixels(repeated=False), PixelScale()} if self.alpha < 1 else set()
        return frozenset({self.rows, *graph})

    def score(self, tokens: VisualTokens) -> Tensor:
        rows = tokens.signals[self.rows]  # [h, R, n]
        asked = rank(self.debiased(tokens, rows.float().mean((0, 1)))) if rows.shape[1] else None
        if self.alpha == 1:
            return rows.new_zeros(len(tokens)) if asked is None else asked
        graph = graph_of(tokens, weighting=self.weighting)
        return graph if asked is None else self.alpha * asked + (1 - self.alpha) * graph

    def debiased(self, tokens: VisualTokens, attention: Tensor) -> Tensor:
        """Return fp32 [n]: attention [n] divided by the share `debias` of its own positional trend."""
        if self.axes == "thw":
            place = grid_place(tokens)
            trend = place @ fit_axes(attention, place)
        else:
            place = raster_place(tokens)
            trend = place * fit_robust(attention, place)
        return attention / (self.debias * trend).exp()
