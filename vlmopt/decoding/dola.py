"""DoLa, a control: contrast the last layer with the early one that differs from it most."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmopt.attention_fix import exclude
from vlmopt.core import setting

from .base import EarlyExit, register


@register("dola")
@dataclass(frozen=True, kw_only=True)
class DoLa(EarlyExit):
    """Contrasts the last layer with the early one that differs from it most (DoLa, arXiv 2309.03883).

    A control beside `deco`: on captions of vision-language models it is reported to do worse than greedy decoding.
    """

    layers: str = setting("0:50%", "Early layers among which the one that differs most is taken.", "str")
    cutoff: float = setting(
        0.1, "Tokens below this fraction of the highest probability are excluded.", "float", min=0, max=1
    )

    def step(self, scores: Tensor, beside: Tensor | None) -> Tensor:
        """Return log p - log q of the tokens that stay, where q is of the early layer chosen for each sample."""
        if beside is None:
            raise ValueError(f"{self.label}: it needs the logits of early layers")
        final, early = scores.float().log_softmax(-1), beside.float().log_softmax(-1)
        layer = divergence(final[:, None], early).argmax(1)
        chosen = early[torch.arange(len(final), device=final.device), layer]
        return exclude(torch.where(final > -torch.inf, final - chosen, final), final, self.cutoff)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence, in nats, of log-probabilities [..., V]."""
    middle = torch.logaddexp(p, q) - math.log(2)
    both = [(one.exp() * (one - middle).nan_to_num(neginf=0.0)).sum(-1) for one in (p, q)]
    return (both[0] + both[1]) / 2
