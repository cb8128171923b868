"""DART: keep tokens that repeat a few pivots least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmopt.core.settings import setting

from .base import Selector, register
from .signals import Signal, TextEmbeds, VisualEmbeds
from .tokens import Selection, VisualTokens


@register("dart")
@dataclass(frozen=True, kw_only=True)
class DART(Selector):
    """Keep the visual tokens of largest L1 norm as pivots; let each pivot then take the tokens least like it.

    Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More (DART, arXiv 2502.11494),
    on what the language model is given, as TensorRT Edge-LLM does it: pivot j of P takes ceil(left / (P - j)) of the
    budget that is left, by lowest cosine. Pivots of the question also guide the choice, after those of the image. The
    authors cut before layer 2 and count the pivots on top of the quota, so that theirs is not an exact budget.
    """

    reads = "embeddings"
    query_aware = True
    unbound = "pivots_text=0"

    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    pivots_image: int = setting(4, "Visual tokens that are pivots, and stay.", "int", min=0)
    pivots_text: int = setting(4, "Tokens of the question that are pivots; 0: the question is not used.", "int", min=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pivots_image and not self.pivots_text:
            raise ValueError(
                f"{self.label}: pivots_image=0 and pivots_text=0 leave nothing to compare with; give one of them >= 1"
            )
        object.__setattr__(self, "query_aware", self.pivots_text > 0)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({VisualEmbeds(), TextEmbeds()} if self.pivots_text else {VisualEmbeds()})

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        visual = tokens.signals[VisualEmbeds()].float()
        stay = longest(visual, min(self.pivots_image, k))
        pivots = [visual[stay]]
        if self.pivots_text:
            text = tokens.signals[TextEmbeds()].float()
            pivots.append(text[longest(text, min(self.pivots_text, len(text)))])
        guides = torch.cat(pivots)
        if not len(guides):
            raise ValueError(
                f"{self.label}: no text behind the last visual token to take pivots from; ask after the image or "
                "set pivots_image >= 1"
            )
        return Selection(least_alike(visual, guides, stay, k).sort().values)


def longest(rows: Tensor, count: int) -> Tensor:
    """Return Long[count]: the rows [n, d] of largest L1 norm, falling, ties to the lowest index."""
    return rows.abs().sum(1).sort(descending=True, stable=True).indices[:count]


@torch.no_grad()  # a choice has no gradient
def least_alike(visual: Tensor, pivots: Tensor, stay: Tensor, k: int) -> Tensor:
    """Return Long[k]: `stay` Long[s], s <= k, and those other rows of `visual` [n, d] least like `pivots` [P, d]."""
    cosines = normalize(pivots, dim=1) @ normalize(visual, dim=1).T
    cosines[:, stay] = torch.inf
    picked = [stay]
    left = k - len(stay)
    for j, row in enumerate(cosines):
        quota = -(-left // (len(cosines) - j))
        taken = row.sort(stable=True).indices[:quota]
        cosines[:, taken] = torch.inf
        picked.append(taken)
        left -= quota
    return torch.cat(picked)
