"""CDPruner: keep tokens that are unlike each other and like the question."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from vlmopt.core.settings import setting

from .base import Selector, finite, register
from .signals import Signal, TextEmbeds, VisualEmbeds
from .similarity import largest_volume, min_max
from .tokens import Selection, VisualTokens


@register("cd_pruner")
@dataclass(frozen=True, kw_only=True)
class CDPruner(Selector):
    """Keep the greedy mode of a determinantal point process with kernel L = diag(r) S diag(r).

    Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs (CDPruner, arXiv
    2506.10967). S are the cosines of the embeddings, r the relevance to the question. The paper takes r from CLIP's
    image and text towers. Most models have no text tower, so r here is our adaptation: the mean cosine of a visual
    token to the input embeddings of the question, both in the space of the LLM. The paper negates r, because in CLIP
    the patches that show what the text names are the less similar ones. A projector trained into the LLM's space is not
    known to do that, so ours keeps its sign. r is stretched to 0..1 within an image, not within a batch, so that a
    sample gets the same tokens alone and in a batch. On LLaVA the released code renumbers what stays:
    positions="repack".
    """

    reads = "embeddings"
    query_aware = True
    unbound = "relevance=none"

    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    relevance: str = setting(
        "text",
        "text: weight by likeness to the question (our stand-in for CLIP's text tower); none: diversity alone.",
        "str",
        choices=("text", "none"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "query_aware", self.relevance == "text")

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({VisualEmbeds(), TextEmbeds()} if self.relevance == "text" else {VisualEmbeds()})

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        visual = tokens.signals[VisualEmbeds()]
        if self.relevance == "none":
            return Selection(largest_volume(visual, k).sort().values)
        text = tokens.signals[TextEmbeds()]
        if not len(text):
            raise ValueError(
                f"{self.label}: no text behind the last visual token; ask after the image or set relevance='none'"
            )
        weights = finite(min_max(likeness(visual, text), offset=1e-6), len(tokens), self.label)
        return Selection(largest_volume(visual, k, weights).sort().values, weights)


def likeness(visual: Tensor, text: Tensor) -> Tensor:
    """Return fp32 [n]: mean cosine of each row of `visual` [n, d] to the rows of `text` [R, d]."""
    return normalize(visual.float(), dim=1) @ normalize(text.float(), dim=1).mean(0)
