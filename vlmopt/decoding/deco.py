"""DeCo: lift what an early layer was surest of, among the likeliest tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmopt.core import setting

from .base import EarlyExit, register


@register("deco")
@dataclass(frozen=True, kw_only=True)
class DeCo(EarlyExit):
    """Adds the logits of the early layer that is surest of one of the likeliest tokens (DeCo, arXiv 2410.11779).

    Its probability of that token weighs them. Early rows go through the head together with the last one, in one
    product. Every sample has its own layer; the release takes one sample.
    """

    layers: str = setting(
        "62%:88%", "Early layers; the paper's 20 to 28 of 32 are the default, as shares of the depth.", "str"
    )
    alpha: float = setting(0.6, "Weight of the early layer; 0 changes nothing.", "float", min=0)
    top_p: float = setting(
        0.9, "Candidates are the likeliest tokens that reach this probability together.", "float", above=0, max=1
    )
    top_k: int = setting(20, "And at most so many of them.", "int", min=1)

    @property
    def is_identity(self) -> bool:
        """True if early layers have no weight: then nothing is excluded either."""
        return self.alpha == 0

    def step(self, scores: Tensor, beside: Tensor | None) -> Tensor:
        """Return the corrected logits of the candidates, -inf elsewhere."""
        if beside is None:
            raise ValueError(f"{self.label}: it needs the logits of early layers")
        return deco(scores, beside, self.alpha, self.top_p, self.top_k)


def deco(final: Tensor, early: Tensor, alpha: float = 0.6, top_p: float = 0.9, top_k: int = 20) -> Tensor:
    """Return final + alpha m early[l] on the candidates of every row, -inf elsewhere; fp32 [B, V].

    Candidates are the shortest run of the likeliest tokens whose probabilities reach `top_p`, at most `top_k`. m is
    the largest probability that an early layer gives to a candidate, l that layer. m multiplies raw logits.

    Args:
        final: logits [B, V], -inf for ids that are excluded already. early: finite logits [B, E, V].
    """
    final, early = final.float(), early.float()
    p, ids = final.softmax(-1).sort(dim=-1, descending=True, stable=True)
    p, ids = p[:, :top_k], ids[:, :top_k]
    taken = (p.cumsum(-1) - p < top_p) & (p > 0)
    there = early.gather(2, ids[:, None].expand(-1, early.shape[1], -1))  # [B, E, k]
    sure = (there - early.logsumexp(-1, keepdim=True)).exp().masked_fill(~taken[:, None], 0).amax(-1)  # [B, E]
    layer = sure.argmax(1)
    batch = torch.arange(len(final), device=final.device)
    lifted = final.gather(1, ids) + alpha * sure[batch, layer, None] * there[batch, layer]
    out = torch.full_like(final, -torch.inf)
    return out.scatter(1, ids, lifted.masked_fill(~taken, -torch.inf))
