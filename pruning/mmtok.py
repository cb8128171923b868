"""MMTok: keep tokens that cover both the question and the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmopt.core.settings import setting

from .base import Selector, register
from .coverage import cover
from .signals import Projector, Signal, TextEmbeds, VisualEmbeds
from .tokens import Selection, VisualTokens


@register("mmtok")
@dataclass(frozen=True, kw_only=True)
class MMTok(Selector):
    """Cover, greedily, the words of the question and, weighted by `alpha`, all visual tokens (facility location).

    MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs (arXiv 2508.18264). How well token j stands
    for word i is softmax_j(cos / text_temperature) / R, for another visual token softmax_j(cos / vision_temperature) /
    n. The released code reads the words of the question alone, each embedded by itself, without stop words; here every
    row of text behind the image counts, the end of the chat template too. Takes memory for (R + n) x n numbers.
    """

    reads = "embeddings"
    query_aware = True
    unbound = "relevance=none"

    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    alpha: float = setting(0.5, "Weight of covering the image, relative to covering the question.", "float", above=0)
    text_temperature: float = setting(
        0.02, "Of the softmax between words and visual tokens; the paper has 0.02 on LLaVA, 0.01 on Qwen.", "float",
        above=0,
    )  # fmt: skip
    vision_temperature: float = setting(0.2, "Of the softmax among visual tokens.", "float", above=0)
    features: str = setting(
        "projector_input",
        "What visual tokens are compared by: projector_input: features of the tower, mean over a token's patches "
        "(the paper); embeds: projector output.",
        "str",
        choices=("projector_input", "embeds"),
    )
    relevance: str = setting(
        "text", "text: cover the question, too; none: cover the image alone.", "str", choices=("text", "none")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "query_aware", self.relevance == "text")

    @property
    def needs(self) -> frozenset[Signal]:
        needed: set[Signal] = {Projector() if self.features == "projector_input" else VisualEmbeds()}
        return frozenset(needed | ({VisualEmbeds(), TextEmbeds()} if self.relevance == "text" else set()))

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        if self.features == "embeds":
            features = tokens.signals[VisualEmbeds()]
        else:
            features = tokens.signals[Projector()].inputs.float().mean(1)
        reach = self.alpha * likeness(features, features, self.vision_temperature)
        if self.relevance == "text":
            text = tokens.signals[TextEmbeds()]
            if not len(text):
                raise ValueError(
                    f"{self.label}: no text behind the last visual token; ask after the image or set relevance='none'"
                )
            words = likeness(text, tokens.signals[VisualEmbeds()], self.text_temperature)
            reach = torch.cat([words, reach], 1)
        return Selection(cover(reach, k).sort().values)


def likeness(demands: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Return fp32 [n, m]: the share of demand u [m, d] that token j [n, d] has by softmax over tokens, over m."""
    cosines = normalize(tokens.float(), dim=1) @ normalize(demands.float(), dim=1).T
    return (cosines / temperature).softmax(0) / len(demands)
