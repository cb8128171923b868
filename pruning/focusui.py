"""FocusUI: keep cells of a screenshot that the instruction is about, by a trained scorer or a stand-in without one.

FocusUI: Efficient UI Grounding via Position-Preserving Visual Token Selection (arXiv 2601.03928).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from vlmopt.core.settings import setting

from .base import ScoreSelector, register
from .markers import MARKERS, POSITIONS
from .released import rounded_down
from .shuffled import Shuffled
from .signals import Pixels, PixelScale, Signal, TextEmbeds, VisualEmbeds, Weights
from .similarity import POOLING, pooled, rank
from .tokens import VisualTokens
from .ui_graph import WEIGHTINGS, graph_of


@register("focus_ui")
@dataclass(frozen=True, kw_only=True)
class FocusUI(Shuffled, ScoreSelector):
    """Keep cells that a small trained network finds most related to the instruction; a trained marker ends each gap.

    FocusUI (arXiv 2601.03928). Each image is scored by itself. The paper tokenises the bare instruction apart. Here the
    scorer reads all text behind the last image, closing tokens of the chat template among them, in training as in use:
    an instruction before the image is not read. Equal scores are drawn by lot. The released code ranks several images
    in one pool; here they always share the budget.
    """

    reads = "embeddings"
    query_aware = True

    scorer: str | None = setting(
        None, "The trained scorer, always given: a bundled checkpoint, directory or Hub id; it fits one model.", "str"
    )
    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    positions: str = setting(
        "pospad",
        "keep: original positions with gaps; repack: renumbered, 1-D RoPE only; pospad: one marker per dropped run.",
        "str",
        choices=POSITIONS,
    )
    marker: str = setting(
        "trained",
        "Embedding of a pospad marker: the one trained with the scorer, the mean or the last token of the run.",
        "str",
        choices=MARKERS,
    )
    paper_compat: bool = setting(False, "As released: the budget is rounded down.", "bool")

    def __post_init__(self) -> None:
        if not self.scorer:
            raise ValueError(
                f"{self.label}: give scorer, a bundled checkpoint's name, a directory or a Hub id; without a "
                "trained one use instruction_similarity"
            )
        super().__post_init__()

    def budget(self, total: int) -> int:
        if self.paper_compat and self.keep_ratio is not None:
            return rounded_down(self.keep_ratio, total)
        return super().budget(total)

    @property
    def trained(self) -> Weights:
        """The scorer as a signal."""
        return Weights(str(self.scorer))

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({VisualEmbeds(), TextEmbeds(), self.trained})

    @property
    def marker_source(self) -> str | None:
        return self.marker_from or self.scorer

    @property
    def source(self) -> str | None:
        return f"scorer {self.scorer}"

    def score(self, tokens: VisualTokens) -> Tensor:
        visual, text = tokens.signals[VisualEmbeds()], tokens.signals[TextEmbeds()]
        if not len(text):
            raise ValueError(
                f"{self.label}: no text behind the last visual token; put the instruction after the image, or use "
                "ui_graph, which reads none"
            )
        scores: Tensor = tokens.signals[self.trained](visual, text)
        return scores


@register("instruction_similarity")
@dataclass(frozen=True, kw_only=True)
class InstructionSimilarity(Shuffled, ScoreSelector):
    """Keep cells whose embeddings resemble those of the instruction, mixed with the UI graph. Needs no training.

    Our stand-in for the trained scorer of FocusUI (arXiv 2601.03928), not validated there: alpha times the rank (0..1)
    of the cosine between a cell, less the mean of all cells, and the instruction, plus 1 - alpha times the UI-graph
    score. Without text behind the last image the graph alone decides. Closing tokens of the chat template are text.
    """

    reads = "embeddings, pixels"
    query_aware = True

    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    alpha: float = setting(0.8, "Weight of the similarity against the UI graph.", "float", min=0, max=1)
    pooling: str = setting(
        "mean", "How scores are pooled over the words of the instruction: mean or max.", "str", choices=POOLING
    )
    weighting: str = setting("log", "Weighting of the UI graph, as for `ui_graph`.", "str", choices=WEIGHTINGS)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({VisualEmbeds(), TextEmbeds(), Pixels(repeated=False), PixelScale()})

    def score(self, tokens: VisualTokens) -> Tensor:
        graph = graph_of(tokens, weighting=self.weighting)
        text = tokens.signals[TextEmbeds()]
        if not len(text):
            return graph
        cells = tokens.signals[VisualEmbeds()].float()
        cells = normalize(cells - cells.mean(0), dim=1)
        alike = pooled(cells, normalize(text.float(), dim=1), self.pooling)
        return self.alpha * rank(alike) + (1 - self.alpha) * graph
