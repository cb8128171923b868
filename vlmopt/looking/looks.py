"""What one question looks at that a general instruction does not: pure functions of attention maps.

Focusing by Contrastive Attention: Enhancing VLMs' Visual Reasoning (CARVE, arXiv 2509.06461), and relative attention of
MLLMs Know Where to Look (ViCrop, arXiv 2502.17422).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LAMBDA = 0.05  # of uniform attention, 1 / n: added to the divisor
FLAT = 1e-3  # relative difference from the general map's own shape below which a map says nothing

Score = Callable[[Tensor, Tensor], Tensor]
"""(attention under the question fp32 [T, L, n], the same under the general instruction) -> fp32 [n], higher = look."""


@dataclass(frozen=True)
class Look:
    """How maps become one score per visual token, and the score an area."""

    score: Score
    layers: str  # whose attention is read, as corrections write them
    steps: int  # answer tokens whose rows are read, at most
    area: str = "components"  # "components" of the highest scores, or one "window"


def ratio(question: Tensor, general: Tensor) -> Tensor:
    """Return A_question / (A_general + lambda), lambda = 0.05 / n, for attention [..., n] on n visual tokens.

    What clutter draws under any instruction cancels. A smaller lambda lets tokens explode that nobody looks at.
    """
    return question / (general + LAMBDA / question.shape[-1])


def contrast(question: Tensor, general: Tensor) -> Tensor:
    """Return fp32 [n] from [T, L, n]: ratios summed over layers, and over answer tokens with weights 1, 2, ..., T."""
    weights = torch.arange(1, len(question) + 1, device=question.device, dtype=question.dtype)
    return torch.einsum("t,tln->n", weights, ratio(question, general))


def why_flat(score: Tensor, alone: Tensor) -> str | None:
    """Return why a score fp32 [n] points nowhere, None if it does.

    Args:
        alone: the score of the general instruction against itself; its shape is what no question puts there. Both are
            compared as shares, so that a factor on all maps of the question changes nothing.
    """
    if not bool(torch.isfinite(score).all()):
        return "the map has numbers that are not finite"
    if not float(score.abs().sum()):
        return "the map is empty"
    if float(score.max() - score.min()) <= FLAT * float(score.abs().max()):
        return "the map is flat"
    total = alone.sum()
    if bool(torch.isfinite(alone).all()) and float(total) > 0:
        shares, own = score / score.sum(), alone / total
        if bool(((shares - own).abs() <= FLAT * own).all()):
            return "the question draws attention nowhere that the general instruction does not"
    return None


LOOKS = {"contrast": Look(contrast, "62%:80%", 32), "relative": Look(contrast, "44%", 1, "window")}
